// GEMM of few rows of x, bound by reading W: W's rows are the 64-row operand of wgmma, x's rows its columns.
//
// Grid: clusters of S blocks; of a tile of kRows rows of W, block r of the cluster multiplies the r-th part
// of k. Where S is 1 there are at most as many blocks as SMs, and a block that is through with a tile takes
// the next one that nobody has (blocks get unequal shares of the bandwidth).
//
// Block: a warpgroup that multiplies for each 64 rows of a tile, a warp that loads W, one that loads x. Both
// loads run ahead through rings of their own, across tiles. W's loads do not wait for the kernels in front:
// the ring is full, and more of W on its way into L2, before x is there.
//
// Shared memory: ring of W [stage][2][64 rows][64], ring of x [stage][k / 64 of a stage][kTokens][64],
// partial sums of other blocks (epilogue.cuh), barriers.
#pragma once

#include "common/dependency.cuh"
#include "epilogue.cuh"
#include "wgmma.cuh"

namespace quire::cuda::gemm {

// Where a box of a load of W begins; see make_weight_map().
template <int kRows>
__device__ inline int4 box_at(const KernelArgs& a, int32_t tile, int32_t step, int box) {
  const int32_t column = (kRows == 64 ? 2 * step + box : step) * kBoxColumns;
  const int32_t group = (kRows == 64 ? tile : 2 * tile + box) * (kBoxRows / 16);
  return a.silu_mul ? make_int4(column, 0, 0, group) : make_int4(column, group * 16, 0, 0);
}

// The next tile that no block has taken.
__device__ inline int32_t take_tile(const KernelArgs& a) {
  const int32_t taken = static_cast<int32_t>(atomicAdd(a.taken, 1));
  // Each block is refused once, so the last refusal is number num_tiles - 1.
  if (taken == a.num_tiles - 1) *a.taken = 0;
  const int32_t tile = static_cast<int32_t>(gridDim.x) + taken;
  return tile < a.num_tiles ? tile : kNoTile;
}

// Brings what comes behind the ring into L2, as fast as the ring's own loads arrive, until there is room in
// it.
template <class S, int kRows>
__device__ void prefetch_weights(const KernelArgs& a, const Part& part, const Shared<S>& shared) {
  const int32_t end = min(shared.num_stages + min(a.prefetch, shared.num_stages), part.num_steps);
#pragma unroll 1
  for (int32_t i = shared.num_stages; i < end; ++i) {
    while (!is_over(shared.full(i - shared.num_stages), 0)) {
      if (is_over(shared.empty(0), 0)) return;
    }
    for (int box = 0; box < 2; ++box) {
      prefetch_box(&a.weight, box_at<kRows>(a, part.first_tile(), part.first_step + i, box));
    }
  }
}

// The loads of W by one thread, in order.
template <class S, int kRows>
struct WeightLoader {
  const KernelArgs& a;
  const Part& part;
  const Shared<S>& shared;
  RingCursor ring;
  int32_t num_loads = 0;

  __device__ void load(int32_t tile, int32_t step) {
    if (num_loads >= shared.num_stages) wait_barrier(shared.empty(ring.stage), ring.phase ^ 1);
    arrive_expecting(shared.full(ring.stage), kLoadBytes);
    const uint32_t to = shared.weights + ring.stage * kLoadBytes;
    for (int box = 0; box < 2; ++box) {
      copy_box(to + box * S::kBoxBytes, &a.weight, box_at<kRows>(a, tile, part.first_step + step, box),
               shared.full(ring.stage), CachePolicy::kEvictFirst);
    }
    ring.advance(shared.num_stages);
    ++num_loads;
  }

  // What fits into the ring.
  __device__ void load_first() {
    const int32_t count = min(shared.num_stages, part.num_steps);
#pragma unroll 1
    for (int32_t step = 0; step < count; ++step) load(part.first_tile(), step);
    if (!a.is_dynamic && part.num_steps <= a.trigger) launch_dependents();
  }

  __device__ void load_rest() {
    if (a.prefetch > 0) prefetch_weights<S, kRows>(a, part, shared);
    // Not before the kernel in front has ended: it may be one of the same weight.
    if (a.is_dynamic) wait_for_dependencies();
    int32_t tile = part.first_tile(), step = num_loads;
#pragma unroll 1
    for (int t = 0; tile != kNoTile; ++t) {
      int32_t next = kNoTile;
      if (a.is_dynamic) {
        next = take_tile(a);
        const int slot = t % kTileSlots;
        store_int(shared.tile(slot), next);
        arrive(shared.tile_known(slot));
      }
#pragma unroll 1
      for (; step < part.num_steps; ++step) load(tile, step);
      step = 0;
      tile = next;
    }
  }
};

// Tile number t of this block, t > 0.
template <class S>
__device__ inline int32_t tile_of(const KernelArgs& a, const Shared<S>& shared, int t) {
  if (!a.is_dynamic) return kNoTile;
  const int slot = (t - 1) % kTileSlots;
  wait_barrier(shared.tile_known(slot), (t - 1) / kTileSlots % 2);
  return load_int(shared.tile(slot));
}

// By all lanes: with given rows, each lane copies every 32nd.
template <class S, int kTokens>
__device__ void load_x(const KernelArgs& a, const Part& part, const Shared<S>& shared) {
  constexpr int kOutside = -1;  // as a row: the copy gives zeros
  const int lane = threadIdx.x % 32;
  // Without given rows, one copy brings all.
  const int32_t num_copies = a.rows != nullptr ? kTokens : 1;
  RingCursor ring;
  int32_t load = 0;
  int t = 0;
  do {
#pragma unroll 1
    for (int32_t step = 0; step < part.num_steps; ++step, ++load) {
      if (load >= shared.num_x_stages) wait_barrier(shared.x_empty(ring.stage), ring.phase ^ 1);
      if (lane == 0) arrive_expecting(shared.x_full(ring.stage), S::kXLoadBytes);
      __syncwarp();
#pragma unroll 1
      for (int i = lane; i < num_copies * S::kBoxesAlongK; i += 32) {
        const int box = i % S::kBoxesAlongK, copy = i / S::kBoxesAlongK;
        int32_t row = 0;
        if (a.rows != nullptr) row = copy < a.num_rows ? a.rows[copy] : kOutside;
        copy_box(shared.x + ring.stage * S::kXLoadBytes + box * S::kXBoxBytes + copy * kBoxColumns * 2, &a.x,
                 ((part.first_step + step) * S::kBoxesAlongK + box) * kBoxColumns, row,
                 shared.x_full(ring.stage), CachePolicy::kEvictLast);
      }
      ring.advance(shared.num_x_stages);
    }
  } while (tile_of(a, shared, ++t) != kNoTile);
}

template <class T, int kTokens, int kRows>
__device__ void multiply(const KernelArgs& a, const Part& part, const Shared<Shape<kTokens, kRows>>& shared) {
  using S = Shape<kTokens, kRows>;
  const int lane = threadIdx.x % 32, warpgroup = threadIdx.x / 128;
  const int32_t trigger_at = max(part.num_steps - a.trigger, 0);
  RingCursor ring, x_ring;
  int32_t tile = part.first_tile();
#pragma unroll 1
  for (int t = 0; tile != kNoTile; ++t) {
    int32_t next = kNoTile;
    float acc[kTokens / 2] = {};
#pragma unroll 1
    for (int32_t step = 0; step < part.num_steps; ++step) {
      if (step == trigger_at) {
        next = tile_of(a, shared, t + 1);
        if (next == kNoTile) launch_dependents();
      }
      wait_barrier(shared.full(ring.stage), ring.phase);
      wait_barrier(shared.x_full(x_ring.stage), x_ring.phase);
      // Of a tile of 128 rows, each warpgroup has a box; of one of 64 rows, there is one, with both boxes.
      const uint32_t w = shared.weights + ring.stage * kLoadBytes + warpgroup * S::kBoxBytes;
      const uint32_t x = shared.x + x_ring.stage * S::kXLoadBytes;
      wgmma_fence();
#pragma unroll
      for (int box = 0; box < S::kBoxesAlongK; ++box) {
#pragma unroll
        for (int k = 0; k < kBoxColumns; k += 16) {
          Wgmma<T, kTokens>::run(acc, operand_at(w + box * S::kBoxBytes + k * 2),
                                 operand_at(x + box * S::kXBoxBytes + k * 2));
        }
      }
      wgmma_commit();
      wgmma_wait();
      if (lane == 0) {
        arrive(shared.empty(ring.stage));
        arrive(shared.x_empty(x_ring.stage));
      }
      ring.advance(shared.num_stages);
      x_ring.advance(shared.num_x_stages);
    }
    if (trigger_at == part.num_steps) {
      next = tile_of(a, shared, t + 1);
      if (next == kNoTile) launch_dependents();
    }
    finish<T, S>(a, part, shared, tile, acc);
    tile = next;
  }
}

template <class T, int kTokens, int kRows>
__global__ void __launch_bounds__(Shape<kTokens, kRows>::kThreads, 2)
    skinny_gemm_kernel(const __grid_constant__ KernelArgs a) {
  using S = Shape<kTokens, kRows>;
  extern __shared__ __align__(1024) unsigned char base[];
  const Shared<S> shared(base, a.layout);
  const Part part(a, kUnitColumns / kBoxColumns / S::kBoxesAlongK);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  WeightLoader<S, kRows> loader{a, part, shared};
  // The first loads go before all else: nothing of the block is in the instruction cache yet.
  if (warp == S::kMathWarps && lane == 0) {
    for (int i = 0; i < kMaxStages; ++i) init_barrier(shared.full(i), 1);
    fence_barrier_init();
    loader.load_first();
  } else if (warp == 0 && lane < kNumOtherBarriers) {
    init_barrier(shared.other_barriers() + 8 * lane, lane < kMaxStages + kMaxXStages ? S::kMathWarps : 1);
    fence_barrier_init();
  }
  __syncthreads();  // the barriers
  if (part.parts > 1) arrive_at_cluster();
  if (warp < S::kMathWarps) {
    wait_for_dependencies();
    multiply<T, kTokens, kRows>(a, part, shared);
  } else if (warp == S::kMathWarps) {
    if (lane == 0) loader.load_rest();
  } else {
    wait_for_dependencies();
    load_x<S, kTokens>(a, part, shared);
  }
}

template <class T, int kTokens, int kRows>
void launch_shape(LaunchConfig config, KernelArgs args) {
  using S = Shape<kTokens, kRows>;
  const auto kernel = skinny_gemm_kernel<T, kTokens, kRows>;
  args.layout = make_layout<S>(args.parts_log2, args.silu_mul, args.blocks_per_sm);
  config.block = S::kThreads;
  config.shared_bytes = args.layout.barriers + kBarrierBytes;
  // All that the SM has: blocks of two GEMMs need it.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "skinny_gemm");
  launch("skinny_gemm", kernel, config, args);
}

template <class T, int kTokens>
void launch_tokens(int tile_rows, const LaunchConfig& config, const KernelArgs& args) {
  return tile_rows == 64 ? launch_shape<T, kTokens, 64>(config, args)
                         : launch_shape<T, kTokens, 128>(config, args);
}

template <class T>
void launch_kernel(int padded_rows, int tile_rows, LaunchConfig config, KernelArgs args) {
  switch (padded_rows) {
    case 8:
      return launch_tokens<T, 8>(tile_rows, config, args);
    case 16:
      return launch_tokens<T, 16>(tile_rows, config, args);
    case 24:
      return launch_tokens<T, 24>(tile_rows, config, args);
    case 32:
      return launch_tokens<T, 32>(tile_rows, config, args);
    case 48:
      return launch_tokens<T, 48>(tile_rows, config, args);
    default:
      return launch_tokens<T, 64>(tile_rows, config, args);
  }
}

}  // namespace quire::cuda::gemm
