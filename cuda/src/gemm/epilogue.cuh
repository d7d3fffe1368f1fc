// From accumulators to out: sums of the blocks of a cluster, bias, SiLU * mul, rounding.
//
// A warp has 16 rows of the tile, and all columns of x: of each 8 columns (a group) a lane has two columns of
// row lane / 4 and of row lane / 4 + 8. With silu_mul these are a gate row and the up row that belongs to it.
// A warp's sums of a group are added up by one block of the cluster, in the order of the parts of k.
//
// L2 reads a sector of 32 bytes from memory before it changes a part of one, so out is written in whole ones.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/vec.cuh"
#include "shape.cuh"

namespace quire::cuda::gemm {

// Partial sums of other blocks: [other ranks in order][unit of this block][lane] float4.
template <class S>
struct Exchange {
  uint32_t base, ready;
  int rank, parts, parts_log2, num_rows;
  bool by_group;

  __device__ Exchange(const KernelArgs& a, const Part& part, const Shared<S>& shared)
      : base(shared.exchange),
        ready(shared.ready()),
        rank(part.rank),
        parts(part.parts),
        parts_log2(part.parts_log2),
        num_rows(a.num_rows),
        by_group(S::kGroups >= parts) {}
  __device__ int owner(int group) const {
    return by_group ? group & (parts - 1) : threadIdx.x / 32 >> (kWarpsLog2 - parts_log2);
  }
  __device__ bool owns(int warp) const { return by_group || warp >> (kWarpsLog2 - parts_log2) == rank; }
  __device__ uint32_t expected_bytes() const {
    uint32_t lanes = 0;  // of a warp, that have columns of x
    for (int group = by_group ? rank : 0; group * 8 < num_rows; group += by_group ? parts : 1) {
      lanes += min((num_rows - group * 8 + 1) / 2, 4) * 8;
    }
    return lanes * 16 * (parts - 1) * (by_group ? S::kMathWarps : S::kMathWarps >> parts_log2);
  }
  __device__ uint32_t place(int from, int group) const {
    const int warp = threadIdx.x / 32;
    const int unit = by_group ? (group >> parts_log2) * S::kMathWarps + warp
                              : (warp & ((S::kMathWarps >> parts_log2) - 1)) * S::kGroups + group;
    const int slot = (from - (from > owner(group))) * S::units_per_rank(parts_log2) + unit;
    return base + (slot * 32 + threadIdx.x % 32) * 16;
  }
  template <int kRegs>
  __device__ void send(const float (&acc)[kRegs]) const {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int group = 0; group < S::kGroups; ++group) {
      if (group * 8 + column >= num_rows) break;
      const int to = owner(group);
      if (to == rank) continue;
      const float* const from = acc + 4 * group;
      store_in_cluster(address_in_block(place(rank, group), to),
                       make_float4(from[0], from[1], from[2], from[3]), address_in_block(ready, to));
    }
  }
  __device__ float4 sum(float4 mine, int group) const {
    float4 total = rank == 0 ? mine : load_float4(place(0, group));
#pragma unroll 1
    for (int from = 1; from < parts; ++from) {
      const float4 more = from == rank ? mine : load_float4(place(from, group));
      total.x += more.x;
      total.y += more.y;
      total.z += more.z;
      total.w += more.w;
    }
    return total;
  }

 private:
  static constexpr int kWarpsLog2 = S::kMathWarps == 8 ? 3 : 2;
};

// As launch_silu_mul computes it.
template <class T>
__device__ T silu_times(float gate, float up) {
  const float g = rounded<T>(gate);
  return from_float<T>(rounded<T>(__fdividef(g, 1.0f + __expf(-g))) * rounded<T>(up));
}

// Of an 8 x 8 matrix, lane 4 r + c holds row r, columns 2 c and 2 c + 1; returns the same of its transpose.
template <class T>
__device__ uint32_t transposed(T first, T second) {
  const uint32_t from = static_cast<uint32_t>(reinterpret_cast<const uint16_t&>(first)) |
                        static_cast<uint32_t>(reinterpret_cast<const uint16_t&>(second)) << 16;
  uint32_t to;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(from));
  return to;
}

// Writes kCount elements of row m of out, from column n on, that are packed in words.
template <class T, int kCount>
__device__ void write(const KernelArgs& a, int32_t m, int32_t n, const Vec<uint32_t, kCount / 2>& words) {
  if (m >= a.num_rows || n >= a.n_out) return;
  T* const to = static_cast<T*>(a.out) + m * a.stride_out + n;
  if (a.is_wide) {
    store_vec(reinterpret_cast<uint32_t*>(to), words);
    return;
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const uint16_t element = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
    if (n + i < a.n_out) to[i] = reinterpret_cast<const T&>(element);
  }
}

template <int kMathThreads>
__device__ inline void sync_math_warps() {
  asm volatile("bar.sync 1, %0;" ::"n"(kMathThreads) : "memory");
}

// All threads that multiply. acc: the block's sums over its part of k.
template <class T, class S, int kRegs>
__device__ void finish(const KernelArgs& a, const Part& part, const Shared<S>& shared, int32_t tile,
                       float (&acc)[kRegs]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4, in_quad = lane % 4;
  const Exchange<S> exchange(a, part, shared);
  if (part.parts > 1) {
    wait_for_cluster();  // every block's barriers are there
    if (threadIdx.x == 0) arrive_expecting(shared.ready(), exchange.expected_bytes());
    exchange.send(acc);
    wait_barrier(shared.ready(), 0);
  }
  const int32_t first = (tile * S::kMathWarps + warp) * (a.silu_mul ? 8 : 16);  // column of out
  float bias[2] = {0.0f, 0.0f};
  if (a.bias != nullptr) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t n = first + quad + (a.silu_mul ? 0 : 8 * half);
      const int32_t offset = a.silu_mul && half == 1 ? a.n_out : 0;
      if (n < a.n_out) bias[half] = to_float(static_cast<const T*>(a.bias)[offset + n]);
    }
  }
  constexpr int kStagingStride = S::kStagingBytes / (S::kGroups * 8);
  if (a.silu_mul) sync_math_warps<S::kMathThreads>();  // the tile before is written
  // Not unrolled: code that a block runs once costs more to fetch than to run.
  const int num_groups = (a.num_rows + 7) / 8;
#pragma unroll 1
  for (int group = 0; group < num_groups; ++group) {
    float4 sums = make_float4(acc[0], acc[1], acc[2], acc[3]);
#pragma unroll
    for (int i = 4; i < kRegs; ++i) acc[i - 4] = acc[i];
    if (exchange.owner(group) != part.rank) continue;
    if (part.parts > 1) sums = exchange.sum(sums, group);
    if (a.bias != nullptr) {
      sums = make_float4(sums.x + bias[0], sums.y + bias[0], sums.z + bias[1], sums.w + bias[1]);
    }
    if (a.silu_mul) {
      const uint32_t y = transposed(silu_times<T>(sums.x, sums.z), silu_times<T>(sums.y, sums.w));
      store_int(shared.staging + (group * 8 + quad) * kStagingStride + warp * 16 + in_quad * 4, y);
    } else {
      const uint32_t low = transposed(from_float<T>(sums.x), from_float<T>(sums.y));
      const uint32_t high = transposed(from_float<T>(sums.z), from_float<T>(sums.w));
      // Of the 16 elements of each row of out, four adjacent ones to each lane.
      const int from = lane / 4 * 4 + in_quad % 2 * 2;
      const uint32_t low0 = __shfl_sync(~0u, low, from), low1 = __shfl_sync(~0u, low, from + 1);
      const uint32_t high0 = __shfl_sync(~0u, high, from), high1 = __shfl_sync(~0u, high, from + 1);
      const Vec<uint32_t, 2> words = {{in_quad < 2 ? low0 : high0, in_quad < 2 ? low1 : high1}};
      write<T, 4>(a, group * 8 + quad, first + in_quad * 4, words);
    }
  }
  if (!a.silu_mul) return;
  sync_math_warps<S::kMathThreads>();
#pragma unroll 1
  for (int i = threadIdx.x; i < a.num_rows * S::kMathWarps; i += S::kMathThreads) {
    const int m = i / S::kMathWarps, from = i % S::kMathWarps;
    if (exchange.by_group ? exchange.owner(m / 8) != part.rank : !exchange.owns(from)) continue;
    const uint32_t at = shared.staging + m * kStagingStride + from * 16;
    write<T, 8>(a, m, (tile * S::kMathWarps + from) * 8, load_words(at));
  }
}

}  // namespace quire::cuda::gemm
