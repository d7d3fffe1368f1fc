// Vectors of elements as one load or store each, and the conversions between element types and float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace quire::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// x as it is after a store to a T and a load.
template <class T>
__device__ inline float rounded(float x) {
  return to_float(from_float<T>(x));
}

// kSize elements; aligned so that the compiler moves them in one instruction when they are 2 to 16 bytes.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize <= 16 ? sizeof(T) * kSize : 16) Vec {
  T values[kSize];

  __device__ T& operator[](int i) { return values[i]; }
  __device__ const T& operator[](int i) const { return values[i]; }
};

template <class T, int kSize>
__device__ inline Vec<T, kSize> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, kSize>*>(from);
}

template <class T, int kSize>
__device__ inline void store_vec(T* to, const Vec<T, kSize>& vec) {
  *reinterpret_cast<Vec<T, kSize>*>(to) = vec;
}

// Elements in 16 bytes.
template <class T>
inline constexpr int kVecSize = 16 / sizeof(T);

}  // namespace quire::cuda
