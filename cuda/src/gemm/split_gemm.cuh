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

#include "split_block.cuh"
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

template <class T, Scaling kScaling, int kRows, int kGroups, int kBlocksPerSm, bool kSiluMul>
__global__ void __launch_bounds__((Shape<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>::kThreads),
                                  kBlocksPerSm) split_gemm_kernel(const __grid_constant__ KernelArgs a) {
  using S = Shape<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>;
  run_block<S>(
      a, [&](const auto& part, const auto& shared) { load_weights(a, part, shared); },
      [&](const auto& part, const auto& shared, int warp, auto& acc) {
        if constexpr (kScaling == Scaling::kRows) {
          for (int row = threadIdx.x; row < kRows; row += S::kMathThreads) {
            store_float(shared.scale(row), a.x_scale[min(part.row + row, a.num_rows - 1)]);
          }
          sync_threads(1, S::kMathThreads);
        }
        if constexpr (kScaling == Scaling::kBlocks) {
          multiply_scaled_part(a, acc, part, shared, warp / 4);
        } else {
          multiply_part(acc, part, shared, warp / 4);
        }
      },
      [&](const auto& part, const auto& shared) {
        if constexpr (kSiluMul) {
          sync_threads(1, S::kMathThreads);  // both groups' sums are there
          write_silu_mul<T>(a, part, shared);
        } else {
          write_out<T>(a, part, shared);
        }
      });
}

template <class T, Scaling kScaling, int kRows, int kGroups, int kBlocksPerSm, bool kSiluMul>
void launch_kernel(LaunchConfig config, const KernelArgs& args) {
  using S = Shape<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>;
  config.block = S::kThreads;
  config.shared_bytes = S::kSharedBytes;
  launch("split_gemm", split_gemm_kernel<T, kScaling, kRows, kGroups, kBlocksPerSm, kSiluMul>, config, args);
}

}  // namespace quire::cuda::gemm::split
