// SiLU(gate) * up of two sums each, as the GEMMs for some and for many rows end.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace quire::cuda::gemm {

template <class T>
struct Pair;
template <>
struct Pair<__nv_bfloat16> {
  using type = __nv_bfloat162;
  static __device__ type from(float x, float y) { return __floats2bfloat162_rn(x, y); }
  static __device__ float2 floats(type x) { return __bfloat1622float2(x); }
};
template <>
struct Pair<__half> {
  using type = __half2;
  static __device__ type from(float x, float y) { return __floats2half2_rn(x, y); }
  static __device__ float2 floats(type x) { return __half22float2(x); }
};

template <class PairType>
__device__ inline uint32_t bits(PairType x) {
  return *reinterpret_cast<const uint32_t*>(&x);
}

// Rounded as launch_silu_mul rounds; the product of two 16-bit elements is rounded once.
template <class T>
__device__ inline uint32_t silu_mul(float gate0, float gate1, float up0, float up1) {
  using P = Pair<T>;
  const float2 gate = P::floats(P::from(gate0, gate1));
  const auto silu =
      P::from(__fdividef(gate.x, 1.0f + __expf(-gate.x)), __fdividef(gate.y, 1.0f + __expf(-gate.y)));
  return bits(__hmul2(silu, P::from(up0, up1)));
}

}  // namespace quire::cuda::gemm
