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

}  // namespace quire::cuda
