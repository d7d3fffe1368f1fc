// Rows of 16-bit elements stored as float8, with one scale each.
#pragma once

#include "common/dispatch.h"
#include "common/fp8.cuh"
#include "common/vec.cuh"
#include "layers/row_reduce.cuh"

namespace quire::cuda {

// Elements that a thread loads at a time.
inline constexpr int kQuantizedVec = 8;

// Throws unless rows of so many elements of the type can be stored.
inline void check_quantizes(const char* name, int32_t size, DType dtype) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    refuse("dtype", std::to_string(static_cast<int>(dtype)), "1 (bfloat16), 2 (float16), with scales");
  }
  if (size % 16 != 0) refuse(name, std::to_string(size), "multiples of 16, with scales");
}

// The row that the block holds: thread t has the vectors t, t + blockDim.x, ... of `values`, of a row of
// `size` elements, a multiple of 16. Every thread calls.
template <class T, int kNumVecs>
__device__ void store_quantized(const Vec<T, kQuantizedVec> (&values)[kNumVecs], int size, RowReduce& reduce,
                                uint8_t* out, float* scale) {
  const auto element = [](int v) { return static_cast<int>(v * blockDim.x + threadIdx.x) * kQuantizedVec; };
  float largest = 0;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    if (element(v) < size) largest = fmaxf(largest, largest_magnitude(unpacked(values[v])));
  }
  const Float8Scale row_scale(reduce.max(largest));
  if (threadIdx.x == 0) *scale = row_scale.scale;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const auto quantized = in_float8_order(row_scale.quantized(values[v]));
    if (element(v) < size) store_vec(out + element(v), quantized);
  }
}

}  // namespace quire::cuda
