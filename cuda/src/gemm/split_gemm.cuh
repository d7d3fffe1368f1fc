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
#include "common/warpgroup.cuh"
#include "copy_engine.cuh"
#include "split_output.cuh"
#include "split_shape.cuh"
#include "wgmma.cuh"
#include "wide_instructions.cuh"

namespace quire::cuda::gemm::split {

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
