// Rows of 16-bit elements stored as float8, with a scale for each row, or for each 128 columns of it.
#pragma once

#include "common/dispatch.h"
#include "common/fp8.cuh"
#include "common/vec.cuh"
#include "layers/row_reduce.cuh"

namespace quire::cuda {

// Elements that a thread loads at a time.
inline constexpr int kQuantizedVec = 8;

inline constexpr int kScaledColumns = 128;  // that may share a scale: of 16 lanes

// Where a row goes: [size] e4m3, and its scales, `stride` floats apart.
struct QuantizedRow {
  uint8_t* out;
  float* scale;
  int32_t num_scales;
  int64_t stride;
};

// Throws unless rows of so many elements of the type can be stored.
inline void check_quantizes(const char* name, int32_t size, DType dtype, int32_t num_scales) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    refuse("dtype", std::to_string(static_cast<int>(dtype)), "1 (bfloat16), 2 (float16), with scales");
  }
  if (size % 16 != 0) refuse(name, std::to_string(size), "multiples of 16, with scales");
  const int32_t num_blocks = (size + kScaledColumns - 1) / kScaledColumns;
  if (num_scales != 1 && num_scales != num_blocks) {
    refuse("num_scales", std::to_string(num_scales), "1, " + std::to_string(num_blocks));
  }
}

// The row that the block holds: thread t has the vectors t, t + blockDim.x, ... of `values`, of a row of
// `size` elements, a multiple of 16. Every thread calls.
template <class T, int kNumVecs>
__device__ void store_quantized(const Vec<T, kQuantizedVec> (&values)[kNumVecs], int size, RowReduce& reduce,
                                const QuantizedRow& to) {
  const auto element = [](int v) { return static_cast<int>(v * blockDim.x + threadIdx.x) * kQuantizedVec; };
  const auto largest_of = [&](int v) {
    return element(v) < size ? largest_magnitude(unpacked(values[v])) : 0.0f;
  };
  const auto store = [&](int v, const Float8Scale& scale) {
    const auto quantized = in_float8_order(scale.quantized(values[v]));
    if (element(v) < size) store_vec(to.out + element(v), quantized);
  };
  if (to.num_scales == 1) {
    float largest = 0;
#pragma unroll
    for (int v = 0; v < kNumVecs; ++v) largest = fmaxf(largest, largest_of(v));
    const Float8Scale scale(reduce.max(largest));
    if (threadIdx.x == 0) *to.scale = scale.scale;
#pragma unroll
    for (int v = 0; v < kNumVecs; ++v) store(v, scale);
    return;
  }
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    float largest = largest_of(v);
#pragma unroll
    for (int distance = kScaledColumns / kQuantizedVec / 2; distance > 0; distance /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
    }
    const Float8Scale scale(largest);
    if (element(v) < size && element(v) % kScaledColumns == 0) {
      to.scale[element(v) / kScaledColumns * to.stride] = scale.scale;
    }
    store(v, scale);
  }
}

}  // namespace quire::cuda
