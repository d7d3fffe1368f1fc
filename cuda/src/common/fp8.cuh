// Stores of floats as float8 e4m3: 4 significant bits, at most 448 in magnitude.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

#include "common/vec.cuh"

namespace quire::cuda {

inline constexpr float kMaxE4M3 = 448.0f;

// Rounded to the nearest, saturated; NaN stays NaN.
template <int kSize>
__device__ inline Vec<uint8_t, kSize> to_e4m3(const Vec<float, kSize>& x) {
  Vec<uint8_t, kSize> out;
  if constexpr (kSize == 1) {
    out[0] = __nv_cvt_float_to_fp8(x[0], __NV_SATFINITE, __NV_E4M3);
  } else {
    static_assert(kSize % 2 == 0, "two at a time");
#pragma unroll
    for (int i = 0; i < kSize; i += 2) {
      *reinterpret_cast<__nv_fp8x2_storage_t*>(&out.values[i]) =
          __nv_cvt_float2_to_fp8x2(make_float2(x[i], x[i + 1]), __NV_SATFINITE, __NV_E4M3);
    }
  }
  return out;
}

template <int kSize>
__device__ inline float largest_magnitude(const Vec<float, kSize>& x) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) largest = fmaxf(largest, fabsf(x[i]));
  return largest;
}

// The scale with which a row just fits: x is about e4m3 * scale. Positive even for a row of zeros.
struct Float8Scale {
  float scale, inverse;

  __device__ explicit Float8Scale(float largest) {
    largest = fmaxf(largest, 1e-12f);
    scale = largest / kMaxE4M3;
    inverse = kMaxE4M3 / largest;
  }

  template <class T, int kSize>
  __device__ Vec<uint8_t, kSize> quantized(const Vec<T, kSize>& vec) const {
    Vec<float, kSize> x = unpacked(vec);
#pragma unroll
    for (int i = 0; i < kSize; ++i) x[i] *= inverse;
    return to_e4m3(x);
  }
};

// Eight adjacent columns of a row, of an even lane and of the odd one after it, as the 16 bytes of
// kFloat8Columns. Every lane of the warp calls.
__device__ inline Vec<uint8_t, 8> in_float8_order(const Vec<uint8_t, 8>& columns) {
  const bool is_second = threadIdx.x % 2 == 1;
  const auto& words = reinterpret_cast<const Vec<uint32_t, 2>&>(columns);
  const uint32_t other = __shfl_xor_sync(~0u, words[is_second ? 0 : 1], 1);
  const uint32_t first = is_second ? other : words[0], second = is_second ? words[1] : other;
  const Vec<uint32_t, 2> mixed = {{__byte_perm(second, first, 0x5140), __byte_perm(second, first, 0x7362)}};
  return reinterpret_cast<const Vec<uint8_t, 8>&>(mixed);
}

}  // namespace quire::cuda
