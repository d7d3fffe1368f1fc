// GEMM of 65 to 256 rows of x: 64 or 128 rows of W times 96 or 128 rows of x per tile, both by wgmma from
// shared memory, k cut over the blocks of a cluster.
//
// Grid: a cluster for each tile; block r of a cluster multiplies the r-th part of k. Block: one or two
// warpgroups that multiply, 64 rows of W each, a warp that loads W and one that loads x, through rings of
// their own. W's loads do not wait for the kernels before: the ring is full before x is there.
//
// The sums of 8 rows of x are a unit. Each block of a cluster adds up a range of the units, from all parts in
// order, once all blocks are through with their rings, where the sums then go.
//
// Scaling::kBlocks: a step of k is what a scale is for. Its products are added to the sums times both scales;
// those of x come with its ring.
//
// Shared memory: ring of W [stage][rows of W][128 bytes], ring of x [stage][rows of x][128 bytes]; then sums
// [part][unit of this block][thread] float4; barriers; scales of the rows of x [1 or stage][row].
#pragma once

#include "common/dependency.cuh"
#include "common/vec.cuh"
#include "common/warpgroup.cuh"
#include "copy_engine.cuh"
#include "silu_mul.cuh"
#include "split_kernel.h"
#include "wgmma.cuh"
#include "wide_instructions.cuh"

namespace quire::cuda::gemm::split {

template <class T, Scaling kScaling_, int kRows_, int kGroups, int kBlocksPerSm, bool kSiluMul_>
struct Shape {
  static_assert(!kSiluMul_ || (kGroups == 2 && kScaling_ == Scaling::kRows));
  static constexpr bool kSiluMul = kSiluMul_;
  static constexpr Scaling kScaling = kScaling_;
  using Element = std::conditional_t<kScaling == Scaling::kNone, T, __nv_fp8_e4m3>;  // of x and W
  static constexpr int kStep = kBoxRowBytes / sizeof(Element);                       // elements of k
  static constexpr int kRows = kRows_;                                               // of x
  static constexpr int kColumns = kGroups * kGroupColumns;                           // rows of W, of a tile
  static constexpr int kOut = kSiluMul ? kGroupColumns : kColumns;
  static constexpr int kMathThreads = kGroups * 128;
  static constexpr int kMathWarps = kMathThreads / 32;
  static constexpr int kThreads = kMathThreads + 64;
  static constexpr int kUnits = kRows / 8;
  static constexpr int kUnitBytes = kMathThreads * 16;

  static constexpr int kWeightBytes = kColumns * kBoxRowBytes;
  static constexpr int kGroupBytes = kGroupColumns * kBoxRowBytes;
  static constexpr int kXBytes = kRows * kBoxRowBytes;
  static constexpr int kRingBytes = 208 / kBlocksPerSm * 1024;
  static constexpr int kXStages = kBlocksPerSm == 1 ? kGroups == 1 ? 7 : 6 : kGroups == 1 ? 6 : 4;
  static constexpr int kWeightStages = (kRingBytes - kXStages * kXBytes) / kWeightBytes;
  static constexpr int kNumScales =
      kScaling == Scaling::kNone ? 0 : (kScaling == Scaling::kRows ? 1 : kXStages) * kRows;
  static constexpr int kScalesAt = kRingBytes + 8 * (2 * kWeightStages + 2 * kXStages + 1);
  static constexpr int kSharedBytes = 1024 + kScalesAt + kNumScales * 4;
  // Where all parts' sums of a block's units need most. Every part has some.
  static_assert((kUnits + kMaxParts - 1) * kUnitBytes <= kRingBytes);
};

template <class S>
struct Shared {
  uint32_t base;  // aligned to 1024 bytes; at the same place in every block

  __device__ uint32_t weights(int stage) const { return base + stage * S::kWeightBytes; }
  __device__ uint32_t x(int stage) const { return weights(S::kWeightStages) + stage * S::kXBytes; }
  __device__ uint32_t full(int stage) const { return base + S::kRingBytes + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return full(S::kWeightStages + stage); }
  __device__ uint32_t x_full(int stage) const { return empty(S::kWeightStages + stage); }
  __device__ uint32_t x_empty(int stage) const { return x_full(S::kXStages + stage); }
  __device__ uint32_t ready() const { return x_empty(S::kXStages); }  // the other parts' sums are here
  __device__ uint32_t scale(int row) const { return base + S::kScalesAt + 4 * row; }
};

// What a block computes.
template <class S>
struct Part {
  int32_t row;     // of x, the first
  int32_t column;  // of out, the first
  int32_t rank, parts;
  int32_t first_step, num_steps;
  int32_t first_unit, num_units;

  __device__ explicit Part(const KernelArgs& a) : parts(a.parts) {
    rank = static_cast<int32_t>(blockIdx.x) % parts;
    const int32_t tile = static_cast<int32_t>(blockIdx.x) / parts;
    // The last tile ends with the last row, and computes some rows twice, with the same bits.
    row = max(min(tile % a.row_tiles * S::kRows, a.num_rows - S::kRows), 0);
    column = tile / a.row_tiles * S::kOut;
    first_step = a.num_steps * rank / parts;
    num_steps = a.num_steps * (rank + 1) / parts - first_step;
    first_unit = first_unit_of(rank);
    num_units = first_unit_of(rank + 1) - first_unit;
  }
  __device__ int32_t first_unit_of(int32_t other_rank) const { return S::kUnits * other_rank / parts; }
  // Size of a part's sums in a block.
  __device__ int32_t stride() const { return (S::kUnits + parts - 1) / parts * S::kUnitBytes; }
};

// One thread.
template <class S>
__device__ void load_weights(const KernelArgs& a, const Part<S>& part, const Shared<S>& shared) {
  RingPosition<S::kWeightStages> ring;
#pragma unroll 1
  for (int32_t step = 0; step < part.num_steps; ++step) {
    if (step >= S::kWeightStages) wait_barrier(shared.empty(ring.stage), ring.parity ^ 1);
    arrive_and_expect(shared.full(ring.stage), S::kWeightBytes);
    copy_box(shared.weights(ring.stage), &a.weight, (part.first_step + step) * S::kStep, part.column,
             shared.full(ring.stage), CachePolicy::kEvictFirst);
    if constexpr (S::kSiluMul) {
      copy_box(shared.weights(ring.stage) + S::kGroupBytes, &a.weight, (part.first_step + step) * S::kStep,
               a.n_out + part.column, shared.full(ring.stage), CachePolicy::kEvictFirst);
    }
    ring.advance();
  }
  launch_dependents();
}

// One thread, or with Scaling::kBlocks one warp.
template <class S>
__device__ void load_x(const KernelArgs& a, const Part<S>& part, const Shared<S>& shared) {
  RingPosition<S::kXStages> ring;
#pragma unroll 1
  for (int32_t step = 0; step < part.num_steps; ++step) {
    if (step >= S::kXStages) wait_barrier(shared.x_empty(ring.stage), ring.parity ^ 1);
    const int lane = threadIdx.x % 32;
    if (S::kScaling != Scaling::kBlocks || lane == 0) {
      arrive_and_expect(shared.x_full(ring.stage), S::kXBytes);
      copy_box(shared.x(ring.stage), &a.x, (part.first_step + step) * S::kStep, part.row,
               shared.x_full(ring.stage), CachePolicy::kEvictLast);
    }
    if constexpr (S::kScaling == Scaling::kBlocks) {
      const float* const scales = a.x_scale + int64_t{part.first_step + step} * a.num_rows;
      for (int row = lane; row < S::kRows; row += 32) {
        copy_float(shared.scale(ring.stage * S::kRows + row), scales + min(part.row + row, a.num_rows - 1));
      }
      arrive_after_copies(shared.x_full(ring.stage));
      __syncwarp();
    }
    ring.advance();
  }
}

template <class S>
__device__ void multiply_part(float (&acc)[S::kRows / 2], const Part<S>& part, const Shared<S>& shared,
                              int group) {
  const int lane = threadIdx.x % 32;
  RingPosition<S::kWeightStages> ring;
  RingPosition<S::kXStages> x_ring;
  int stage_before = 0, x_stage_before = 0;
#pragma unroll 1
  for (int32_t step = 0; step < part.num_steps; ++step) {
    wait_barrier(shared.full(ring.stage), ring.parity);
    wait_barrier(shared.x_full(x_ring.stage), x_ring.parity);
    const uint64_t w = operand_at(shared.weights(ring.stage) + group * S::kGroupBytes);
    const uint64_t x = operand_at(shared.x(x_ring.stage));
    begin_products();
#pragma unroll
    for (int at = 0; at < kBoxRowBytes; at += 32) {
      wide::multiply<typename S::Element>(acc, w + (at >> 4), x + (at >> 4), step > 0 || at > 0);
    }
    commit_products();
    if (step > 0) {
      wait_products<1>();
      if (lane == 0) {
        arrive(shared.empty(stage_before));
        arrive(shared.x_empty(x_stage_before));
      }
    }
    stage_before = ring.stage;
    x_stage_before = x_ring.stage;
    ring.advance();
    x_ring.advance();
  }
  wait_products<0>();
}

// multiply_part() with a scale for each step. sums: of its products times the scales.
template <class S>
__device__ void multiply_scaled_part(const KernelArgs& a, float (&sums)[S::kRows / 2], const Part<S>& part,
                                     const Shared<S>& shared, int group) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* weight_scales[2];  // of this thread's rows of W
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t row = min(part.column + warp * 16 + lane / 4 + 8 * half, a.n_out - 1);
    weight_scales[half] = a.weight_scale + int64_t{row} * a.num_scales + part.first_step;
  }
#pragma unroll
  for (float& sum : sums) sum = 0;
  float acc[S::kRows / 2];
  float next0 = __ldg(weight_scales[0]), next1 = __ldg(weight_scales[1]);  // loaded a step ahead
  RingPosition<S::kWeightStages> ring;
  RingPosition<S::kXStages> x_ring;
#pragma unroll 1
  for (int32_t step = 0; step < part.num_steps; ++step) {
    const float scale0 = next0, scale1 = next1;
    const int32_t next = min(step + 1, part.num_steps - 1);
    next0 = __ldg(weight_scales[0] + next);
    next1 = __ldg(weight_scales[1] + next);
    wait_barrier(shared.full(ring.stage), ring.parity);
    wait_barrier(shared.x_full(x_ring.stage), x_ring.parity);
    const uint64_t w = operand_at(shared.weights(ring.stage) + group * S::kGroupBytes);
    const uint64_t x = operand_at(shared.x(x_ring.stage));
    begin_products();
#pragma unroll
    for (int at = 0; at < kBoxRowBytes; at += 32) {
      wide::multiply<typename S::Element>(acc, w + (at >> 4), x + (at >> 4), at > 0);
    }
    commit_products();
    wait_products<0>();
    if (lane == 0) arrive(shared.empty(ring.stage));
#pragma unroll
    for (int unit = 0; unit < S::kUnits; ++unit) {
      const float2 rows = load_float2(shared.scale(x_ring.stage * S::kRows + unit * 8 + lane % 4 * 2));
      float* const sum = sums + 4 * unit;
      const float* const product = acc + 4 * unit;
      sum[0] = fmaf(product[0], scale0 * rows.x, sum[0]);
      sum[1] = fmaf(product[1], scale0 * rows.y, sum[1]);
      sum[2] = fmaf(product[2], scale1 * rows.x, sum[2]);
      sum[3] = fmaf(product[3], scale1 * rows.y, sum[3]);
    }
    __syncwarp();
    if (lane == 0) arrive(shared.x_empty(x_ring.stage));
    ring.advance();
    x_ring.advance();
  }
}

// Each unit to the block that adds it up.
template <class S>
__device__ void send(const Part<S>& part, const Shared<S>& shared, const float (&acc)[S::kRows / 2]) {
  const uint32_t from_here = shared.base + part.rank * part.stride() + threadIdx.x * 16;
  int32_t owner = -1, end = 0;
  uint32_t to = 0, ready = 0;
#pragma unroll
  for (int unit = 0; unit < S::kUnits; ++unit) {
    if (unit == end) {
      ++owner;
      end = part.first_unit_of(owner + 1);
      to = from_here;
      if (owner != part.rank) {
        to = address_in_block(from_here, owner);
        ready = address_in_block(shared.ready(), owner);
      }
    }
    const float4 sums = make_float4(acc[4 * unit], acc[4 * unit + 1], acc[4 * unit + 2], acc[4 * unit + 3]);
    if (owner == part.rank) {
      store_float4(to, sums);
    } else {
      store_in_cluster(to, sums, ready);
    }
    to += S::kUnitBytes;
  }
}

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
    uint32_t from = shared.base + i * S::kUnitBytes + threadIdx.x * 16;
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

// A unit of a tile with kSiluMul, of the first group's rows of W or, `of_up`, the second's: the sums of all
// parts.
template <class S>
__device__ float4 sums_of(const Part<S>& part, const Shared<S>& shared, int unit, bool of_up) {
  uint32_t from = shared.base + unit * S::kUnitBytes + (threadIdx.x % 128 + of_up * 128) * 16;
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
      const float4 sums = sums_of(part, shared, i, which == 1);
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

template <class T, Scaling kScaling, int kRows, int kGroups, int kBlocksPerSm, bool kSiluMul>
__global__ void __launch_bounds__((Shape<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>::kThreads),
                                  kBlocksPerSm) split_gemm_kernel(const __grid_constant__ KernelArgs a) {
  using S = Shape<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>;
  extern __shared__ unsigned char dynamic[];
  const Shared<S> shared = {(shared_address(dynamic) + 1023) / 1024 * 1024};
  const Part<S> part(a);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kWeightStages; ++i) {
      init_barrier(shared.full(i), 1);
      init_barrier(shared.empty(i), S::kMathWarps);
    }
    for (int i = 0; i < S::kXStages; ++i) {
      init_barrier(shared.x_full(i), kScaling == Scaling::kBlocks ? 1 + 32 : 1);
      init_barrier(shared.x_empty(i), S::kMathWarps);
    }
    init_barrier(shared.ready(), 1);
    fence_barrier_init();
    arrive_and_expect(shared.ready(), (part.parts - 1) * part.num_units * S::kUnitBytes);
  }
  __syncthreads();
  if (warp >= S::kMathWarps) {
    if (warp == S::kMathWarps) {
      if (lane == 0) load_weights(a, part, shared);
    } else {
      wait_for_dependencies();
      if (kScaling == Scaling::kBlocks || lane == 0) load_x(a, part, shared);
    }
    __syncwarp();
    if (part.parts > 1) {
      arrive_at_cluster();
      wait_for_cluster();
    }
  } else {
    wait_for_dependencies();
    if constexpr (kScaling == Scaling::kRows) {
      for (int row = threadIdx.x; row < kRows; row += S::kMathThreads) {
        store_float(shared.scale(row), a.x_scale[min(part.row + row, a.num_rows - 1)]);
      }
      sync_threads(1, S::kMathThreads);
    }
    float acc[kRows / 2];
    if constexpr (kScaling == Scaling::kBlocks) {
      multiply_scaled_part(a, acc, part, shared, warp / 4);
    } else {
      multiply_part(acc, part, shared, warp / 4);
    }
    // All warps that share the rings, here and in the other blocks, are through with them.
    if (part.parts > 1) {
      arrive_at_cluster();
      wait_for_cluster();
    } else {
      sync_threads(1, S::kMathThreads);
    }
    send(part, shared, acc);
    wait_barrier(shared.ready(), 0);
    if constexpr (kSiluMul) {
      sync_threads(1, S::kMathThreads);  // both groups' sums are there
      write_silu_mul<T>(a, part, shared);
    } else {
      write_out<T>(a, part, shared);
    }
  }
}

template <class T, Scaling kScaling, int kRows, int kGroups, int kBlocksPerSm, bool kSiluMul>
void launch_kernel(LaunchConfig config, const KernelArgs& args) {
  using S = Shape<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>;
  config.block = S::kThreads;
  config.shared_bytes = S::kSharedBytes;
  launch("split_gemm", split_gemm_kernel<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>, config, args);
}

}  // namespace quire::cuda::gemm::split
