// From a split GEMM's sums in shared memory to out: sums of the parts of k, scales, bias, SiLU * mul,
// rounding.
#pragma once

#include "common/vec.cuh"
#include "copy_engine.cuh"
#include "silu_mul.cuh"
#include "split_shape.cuh"

namespace quire::cuda::gemm::split {

// Lane 4 r + c of an 8 x 8 matrix holds row r, columns 2 c and 2 c + 1; returns its entries of the transpose.
__device__ inline uint32_t transposed(uint32_t two) {
  uint32_t to;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(two));
  return to;
}

template <class T>
__device__ inline uint32_t rounded_pair(float first, float second) {
  const Vec<T, 2> pair = packed<T>(Vec<float, 2>{{first, second}});
  return reinterpret_cast<const uint32_t&>(pair);
}

// Row m of out, 16 elements of which a warp has as two transposed matrices: each lane takes four adjacent
// ones, from column n on.
template <class T>
__device__ inline void store_unit(const KernelArgs& a, int32_t m, int32_t n, uint32_t low, uint32_t high) {
  const int lane = threadIdx.x % 32, in_quad = lane % 4;
  const int lane_from = lane / 4 * 4 + in_quad % 2 * 2;
  const uint32_t low0 = __shfl_sync(~0u, low, lane_from), low1 = __shfl_sync(~0u, low, lane_from + 1);
  const uint32_t high0 = __shfl_sync(~0u, high, lane_from), high1 = __shfl_sync(~0u, high, lane_from + 1);
  if (m < a.num_rows && n < a.n_out) {
    const Vec<uint32_t, 2> words = {{in_quad < 2 ? low0 : high0, in_quad < 2 ? low1 : high1}};
    store_vec(reinterpret_cast<uint32_t*>(static_cast<T*>(a.out) + m * a.stride_out + n), words);
  }
}

// Unit number i of this block, of a thread: the sums of all parts.
template <class S>
__device__ float4 sums_of(const Part<S>& part, const Shared<S>& shared, int32_t i, int thread) {
  uint32_t from = shared.base + i * S::kUnitBytes + thread * 16;
  float4 sums = load_float4(from);
#pragma unroll 1
  for (int32_t other = 1; other < part.parts; ++other) {
    from += part.stride();
    const float4 more = load_float4(from);
    sums.x += more.x;
    sums.y += more.y;
    sums.z += more.z;
    sums.w += more.w;
  }
  return sums;
}

template <class T, class S>
__device__ void write_out(const KernelArgs& a, const Part<S>& part, const Shared<S>& shared) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, in_quad = lane % 4;
  const int32_t first = part.column + warp * 16, n = first + in_quad * 4;
  float bias[2] = {0.0f, 0.0f}, scale[2] = {0.0f, 0.0f};
  if constexpr (S::kScaling == Scaling::kRows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row_of_w = first + lane / 4 + 8 * half;
      if (row_of_w < a.n_out) scale[half] = a.weight_scale[row_of_w];
    }
  }
  if (a.bias != nullptr) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row_of_w = first + lane / 4 + 8 * half;
      if (row_of_w < a.n_out) bias[half] = to_float(static_cast<const T*>(a.bias)[row_of_w]);
    }
  }
  // Not unrolled: code that a block runs once costs more to fetch than to run.
#pragma unroll 1
  for (int32_t i = 0; i < part.num_units; ++i) {
    float4 sums = sums_of(part, shared, i, threadIdx.x);
    if constexpr (S::kScaling == Scaling::kRows) {
      const float2 rows = load_float2(shared.scale((part.first_unit + i) * 8 + in_quad * 2));
      sums = make_float4(sums.x * (rows.x * scale[0]), sums.y * (rows.y * scale[0]),
                         sums.z * (rows.x * scale[1]), sums.w * (rows.y * scale[1]));
    }
    const uint32_t low = transposed(rounded_pair<T>(sums.x + bias[0], sums.y + bias[0]));
    const uint32_t high = transposed(rounded_pair<T>(sums.z + bias[1], sums.w + bias[1]));
    store_unit<T>(a, part.row + (part.first_unit + i) * 8 + lane / 4, n, low, high);
  }
}

// Each group computes every second unit, from both groups' sums.
template <class T, class S>
__device__ void write_silu_mul(const KernelArgs& a, const Part<S>& part, const Shared<S>& shared) {
  const int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  const int in_quad = lane % 4;
  const int32_t first = part.column + warp * 16;
  float bias[2][2] = {}, scale[2][2] = {};  // [gate, up][row of W]
#pragma unroll
  for (int which = 0; which < 2; ++which) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t n = first + lane / 4 + 8 * half, row_of_w = n + which * a.n_out;
      if (n >= a.n_out) continue;
      scale[which][half] = a.weight_scale[row_of_w];
      if (a.bias != nullptr) bias[which][half] = to_float(static_cast<const T*>(a.bias)[row_of_w]);
    }
  }
#pragma unroll 1
  for (int32_t i = group; i < part.num_units; i += 2) {
    const float2 rows = load_float2(shared.scale((part.first_unit + i) * 8 + in_quad * 2));
    float4 both[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float4 sums = sums_of(part, shared, i, threadIdx.x % 128 + which * 128);
      const float (&s)[2] = scale[which], (&b)[2] = bias[which];
      both[which] = make_float4(sums.x * (rows.x * s[0]) + b[0], sums.y * (rows.y * s[0]) + b[0],
                                sums.z * (rows.x * s[1]) + b[1], sums.w * (rows.y * s[1]) + b[1]);
    }
    const float4 gate = both[0], up = both[1];
    const uint32_t low = transposed(silu_mul<T>(gate.x, gate.y, up.x, up.y));
    const uint32_t high = transposed(silu_mul<T>(gate.z, gate.w, up.z, up.w));
    store_unit<T>(a, part.row + (part.first_unit + i) * 8 + lane / 4, first + in_quad * 4, low, high);
  }
}

}  // namespace quire::cuda::gemm::split
