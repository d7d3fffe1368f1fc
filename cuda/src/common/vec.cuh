// Vectors of elements as one load or store each, and the conversions between element types and float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

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

// All elements as floats, and floats as elements of T, rounded once. 16-bit types go two at a time: one at a
// time they take the slow conversion unit and a register each.
template <class T, int kSize>
__device__ inline Vec<float, kSize> unpacked(const Vec<T, kSize>& vec) {
  Vec<float, kSize> out;
  if constexpr (std::is_same_v<T, float> || kSize % 2 == 1) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] = to_float(vec[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; i += 2) {
      float2 two;
      if constexpr (std::is_same_v<T, __half>) {
        two = __half22float2(*reinterpret_cast<const __half2*>(&vec.values[i]));
      } else {
        two = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&vec.values[i]));
      }
      out[i] = two.x;
      out[i + 1] = two.y;
    }
  }
  return out;
}

template <class T, int kSize>
__device__ inline Vec<T, kSize> packed(const Vec<float, kSize>& vec) {
  Vec<T, kSize> out;
  if constexpr (std::is_same_v<T, float> || kSize % 2 == 1) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] = from_float<T>(vec[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; i += 2) {
      if constexpr (std::is_same_v<T, __half>) {
        *reinterpret_cast<__half2*>(&out.values[i]) = __floats2half2_rn(vec[i], vec[i + 1]);
      } else {
        *reinterpret_cast<__nv_bfloat162*>(&out.values[i]) = __floats2bfloat162_rn(vec[i], vec[i + 1]);
      }
    }
  }
  return out;
}

// Each element as it is after a store to a T and a load.
template <class T, int kSize>
__device__ inline Vec<float, kSize> rounded(const Vec<float, kSize>& vec) {
  return unpacked(packed<T>(vec));
}

// Elements in 16 bytes.
template <class T>
inline constexpr int kVecSize = 16 / sizeof(T);

}  // namespace quire::cuda
