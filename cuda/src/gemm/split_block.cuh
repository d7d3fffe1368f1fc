// What a block does around its products: loads of x, barriers, the exchange of sums among the blocks of a
// cluster. S: Shape or WidenedShape.
#pragma once

#include "common/dependency.cuh"
#include "common/warpgroup.cuh"
#include "copy_engine.cuh"
#include "split_shape.cuh"

namespace quire::cuda::gemm::split {

// One thread, or with Scaling::kBlocks one warp.
template <class S>
__device__ void load_x(const KernelArgs& a, const Part<S>& part, const Shared<S>& shared) {
  RingPosition<S::kXStages> ring;
#pragma unroll 1
  for (int32_t step = 0; step < part.num_steps * S::kXSteps; ++step) {
    if (step >= S::kXStages) wait_barrier(shared.x_empty(ring.stage), ring.parity ^ 1);
    const int lane = threadIdx.x % 32;
    if (S::kScaling != Scaling::kBlocks || lane == 0) {
      arrive_and_expect(shared.x_full(ring.stage), S::kXBytes);
      copy_box(shared.x(ring.stage), &a.x, (part.first_step * S::kXSteps + step) * S::kStep, part.row,
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

// load_weights(part, shared): by one thread; multiply(part, shared, warp, acc): by the warps that multiply,
// the block's sums; write(part, shared): by the same, when the sums of all parts are there.
template <class S, class LoadWeights, class Multiply, class Write>
__device__ void run_block(const KernelArgs& a, LoadWeights load_weights, Multiply multiply, Write write) {
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
      init_barrier(shared.x_full(i), S::kScaling == Scaling::kBlocks ? 1 + 32 : 1);
      init_barrier(shared.x_empty(i), S::kMathWarps);
    }
    init_barrier(shared.ready(), 1);
    fence_barrier_init();
    arrive_and_expect(shared.ready(), (part.parts - 1) * part.num_units * S::kUnitBytes);
  }
  __syncthreads();
  if (warp >= S::kMathWarps) {
    if constexpr (S::kMovesRegisters) shrink_registers<40>();
    if (warp == S::kMathWarps) {
      if (lane == 0) load_weights(part, shared);
    } else if (!S::kMovesRegisters || warp == S::kMathWarps + 1) {
      wait_for_dependencies();
      if (S::kScaling == Scaling::kBlocks || lane == 0) load_x(a, part, shared);
    }
    __syncwarp();
    if (part.parts > 1) {
      arrive_at_cluster();
      wait_for_cluster();
    }
  } else {
    if constexpr (S::kMovesRegisters) grow_registers<232>();
    wait_for_dependencies();
    float acc[S::kRows / 2];
    multiply(part, shared, warp, acc);
    // All warps that share the rings, here and in the other blocks, are through with them.
    if (part.parts > 1) {
      arrive_at_cluster();
      wait_for_cluster();
    } else {
      sync_threads(1, S::kMathThreads);
    }
    send(part, shared, acc);
    wait_barrier(shared.ready(), 0);
    write(part, shared);
  }
}

}  // namespace quire::cuda::gemm::split
