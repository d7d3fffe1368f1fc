// From accumulators to out: sums of the blocks of a cluster, bias, SiLU * mul, rounding.
//
// A warp has 16 rows of the tile, and all columns of x: of each 8 columns (a group) a lane has two columns of
// row lane / 4 and of row lane / 4 + 8. With silu_mul these are a gate row and the up row that belongs to it.
// The sums of a group are added up by one block of the cluster, in the order of the parts of k.
//
// Results go through shared memory, so that a warp writes whole lines of 128 bytes (with silu_mul 64) of out.
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

  __device__ Exchange(const KernelArgs& a, const Part& part, const Shared<S>& shared)
      : base(shared.exchange),
        ready(shared.ready()),
        rank(part.rank),
        parts(part.parts),
        parts_log2(part.parts_log2),
        num_rows(a.num_rows) {}
  __device__ int owner(int group) const { return group & (parts - 1); }
  __device__ uint32_t expected_bytes() const {
    uint32_t lanes = 0;  // of a warp, that have columns of x
    for (int group = rank; group * 8 < num_rows; group += parts) {
      lanes += min((num_rows - group * 8 + 1) / 2, 4) * 8;
    }
    return lanes * 16 * (parts - 1) * kMathWarps;
  }
  __device__ uint32_t place(int from, int group) const {
    const int unit = (group >> parts_log2) * kMathWarps + threadIdx.x / 32;
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
};

// The tile's elements of out on their way there: for each column of x, chunks of 8 elements, which are one
// for each warp with silu_mul and two without. They change places so that 8 lanes that store one chunk of 8
// columns, or load adjacent chunks, meet all banks once.
struct Staging {
  uint32_t base;
  int chunks_log2;

  __device__ Staging(uint32_t address, bool silu_mul) : base(address), chunks_log2(silu_mul ? 2 : 3) {}
  __device__ uint32_t at(int column, int chunk) const {
    const int place = chunk ^ (column >> (3 - chunks_log2) & ((1 << chunks_log2) - 1));
    return base + ((column << chunks_log2) + place) * 16;
  }
};

// SiLU(gate) * up, as launch_silu_mul computes it.
template <class T>
__device__ T silu_times(float gate, float up) {
  const float g = rounded<T>(gate);
  return from_float<T>(rounded<T>(__fdividef(g, 1.0f + __expf(-g))) * rounded<T>(up));
}

template <class T>
__device__ uint32_t packed_pair(T first, T second) {
  return static_cast<uint32_t>(reinterpret_cast<const uint16_t&>(first)) |
         static_cast<uint32_t>(reinterpret_cast<const uint16_t&>(second)) << 16;
}

// Lane 4 r + c of an 8 x 8 matrix holds row r, columns 2 c and 2 c + 1. Stores the transpose, its row r at
// the address of lane r, and that of a second matrix at those of the lanes 8 + r.
__device__ inline void store_transposed(uint32_t to, uint32_t matrix) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(to), "r"(matrix)
               : "memory");
}
__device__ inline void store_transposed(uint32_t to, uint32_t first, uint32_t second) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(to), "r"(first),
               "r"(second)
               : "memory");
}

// Writes 8 elements of row m of out, from column n on.
template <class T>
__device__ void write(const KernelArgs& a, int32_t m, int32_t n, const Vec<uint32_t, 4>& words) {
  if (n >= a.n_out) return;
  T* const to = static_cast<T*>(a.out) + m * a.stride_out + n;
  if (a.is_wide) {
    store_vec(reinterpret_cast<uint32_t*>(to), words);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint16_t element = static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2));
    if (n + i < a.n_out) to[i] = reinterpret_cast<const T&>(element);
  }
}

__device__ inline void sync_math_warps() { asm volatile("bar.sync 1, %0;" ::"n"(kMathThreads) : "memory"); }

// All threads that multiply. acc: the block's sums over its part of k.
template <class T, class S, int kRegs>
__device__ void finish(const KernelArgs& a, const Part& part, const Shared<S>& shared, int32_t tile,
                       float (&acc)[kRegs]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, quad = lane / 4;
  const Exchange<S> exchange(a, part, shared);
  if (part.parts > 1) {
    wait_for_cluster();  // every block's barriers are there
    if (threadIdx.x == 0) arrive_and_expect(shared.ready(), exchange.expected_bytes());
    exchange.send(acc);
    wait_barrier(shared.ready(), 0);
  }
  const int32_t first = (tile * kMathWarps + warp) * (a.silu_mul ? 8 : 16);  // column of out
  float bias[2] = {0.0f, 0.0f};
  if (a.bias != nullptr) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t n = first + quad + (a.silu_mul ? 0 : 8 * half);
      const int32_t offset = a.silu_mul && half == 1 ? a.n_out : 0;
      if (n < a.n_out) bias[half] = to_float(static_cast<const T*>(a.bias)[offset + n]);
    }
  }
  const Staging staging(shared.staging, a.silu_mul);
  const int chunk = a.silu_mul ? warp : 2 * warp + lane / 8 % 2;
  sync_math_warps();  // the tile before is written
  // A few groups at a time hide each other's latency; more are code that costs longer to fetch than to run.
#pragma unroll 1
  for (int first_group = 0; first_group * 8 < a.num_rows; first_group += S::kBatch) {
#pragma unroll
    for (int i = 0; i < S::kBatch; ++i) {
      const int group = first_group + i;
      if (exchange.owner(group) != part.rank) continue;
      float4 sums = make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]);
      if (part.parts > 1) sums = exchange.sum(sums, group);
      if (a.bias != nullptr) {
        sums = make_float4(sums.x + bias[0], sums.y + bias[0], sums.z + bias[1], sums.w + bias[1]);
      }
      const uint32_t to = staging.at(group * 8 + lane % 8, chunk);
      if (a.silu_mul) {
        store_transposed(to, packed_pair(silu_times<T>(sums.x, sums.z), silu_times<T>(sums.y, sums.w)));
      } else {
        store_transposed(to, packed_pair(from_float<T>(sums.x), from_float<T>(sums.y)),
                         packed_pair(from_float<T>(sums.z), from_float<T>(sums.w)));
      }
    }
#pragma unroll
    for (int i = 4 * S::kBatch; i < kRegs; ++i) acc[i - 4 * S::kBatch] = acc[i];
  }
  sync_math_warps();
  const int chunks_log2 = staging.chunks_log2;
#pragma unroll 1
  for (int i = threadIdx.x; i < a.num_rows << chunks_log2; i += kMathThreads) {
    const int m = i >> chunks_log2, from = i & ((1 << chunks_log2) - 1);
    if (exchange.owner(m / 8) != part.rank) continue;
    write<T>(a, m, ((tile << chunks_log2) + from) * 8, load_words(staging.at(m, from)));
  }
}

}  // namespace quire::cuda::gemm
