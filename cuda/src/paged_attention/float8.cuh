// Caches of 8-bit floats: every e4m3 converts exactly into either 16-bit type.
#pragma once

#include <type_traits>

#include "common/mma.cuh"

namespace quire::cuda::attention {

struct Float8 {  // e4m3
  uint8_t bits;
};

// The lower two bytes of x as a pair of float16.
__device__ inline uint32_t half2_of(uint32_t x) {
  uint32_t pair;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;\n" : "=r"(pair) : "h"(static_cast<uint16_t>(x)));
  return pair;
}

// The numbers as a pair of T.
template <class T>
__device__ inline uint32_t pair_of(uint32_t x) {
  const uint32_t half2 = half2_of(x);
  if constexpr (std::is_same_v<T, __half>) return half2;
  const float2 values = __half22float2(*reinterpret_cast<const __half2*>(&half2));
  return Element<T>::pack(values.x, values.y);
}

__device__ inline void load_shared(uint32_t (&x)[4], uint32_t from) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from)
               : "memory");
}

__device__ inline void load_shared(uint32_t (&x)[2], uint32_t from) {
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];\n" : "=r"(x[0]), "=r"(x[1]) : "r"(from) : "memory");
}

__device__ inline void store_shared(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};\n" ::"r"(to), "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}

}  // namespace quire::cuda::attention
