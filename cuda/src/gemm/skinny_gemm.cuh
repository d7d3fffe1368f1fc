// GEMM of few rows of x, bound by reading W: W's rows are the 64-row operand of wgmma, x's rows its columns.
//
// Grid: clusters of S blocks; of a tile of 64 rows of W, block r of the cluster multiplies the r-th part
// of k. Where S is 1 there are at most as many blocks as find room, and a block that is through with a tile
// takes the next free one (blocks get unequal shares of the bandwidth).
//
// Block: a warpgroup that multiplies, a warp that loads W, one that loads x. Both loads run ahead through
// rings of their own, across tiles. W's loads do not wait for the kernels before: the ring is full before x
// is there. But only few of them are on their way at a time: more than the memory takes only queue up
// there, and with them whatever the kernels before still read.
//
// W's elements may be narrower than x's: a load of W then is multiplied with several loads of x
// (products.cuh).
//
// Shared memory: ring of W [stage][2][64 rows][128 bytes], of four bits with [groups][64 rows] scales and
// zeros after it, ring of x [stage][2][kTokens][64], partial sums of
// other blocks and the tile's results (epilogue.cuh), barriers.
#pragma once

#include <algorithm>

#include "common/dependency.cuh"
#include "epilogue.cuh"
#include "products.cuh"
#include "weight_boxes.cuh"

namespace quire::cuda::gemm {

// A load of x: as many steps as a load of W has, or one where x is large.
template <int kTokens, WeightFormat kFormat>
struct XLoads {
  static constexpr int kStepsOfWeight = 16 / bits_of(kFormat);
  static constexpr int kSteps = kTokens <= 16 ? kStepsOfWeight : 1;
  static constexpr int kInLoad = kStepsOfWeight / kSteps;  // of W
  static constexpr int kBytes = kSteps * Shape<kTokens>::kXLoadBytes;
  // At least so many fit: where weights are narrow, what multiplies is soon through with one.
  static constexpr int kMinStages = kStepsOfWeight == 1 ? 2 : kInLoad == 1 ? 3 : kMaxXStages;

  int32_t first, count;  // of a part of k

  __device__ XLoads(const KernelArgs& a, const Part& part)
      : first(part.first_step * kInLoad), count(part.num_steps) {
    if constexpr (kInLoad > 1) count = min(count * kInLoad, a.num_x_steps - first);
  }
  // The last load of W may be of fewer columns.
  __device__ int32_t in_load(int32_t load) const {
    return kInLoad == 1 ? 1 : min(kInLoad, count - load * kInLoad);
  }
};

// The next tile that no block has taken.
__device__ inline int32_t take_tile(const KernelArgs& a) {
  const int32_t taken = static_cast<int32_t>(atomicAdd(a.taken, 1));
  // Each block is refused once, so the last refusal is number num_tiles - 1.
  if (taken == a.num_tiles - 1) *a.taken = 0;
  const int32_t tile = static_cast<int32_t>(gridDim.x) + taken;
  return tile < a.num_tiles ? tile : kNoTile;
}

// The loads of W by one thread, in order.
template <class S, WeightFormat kFormat>
struct WeightLoader {
  const KernelArgs& a;
  const Part& part;
  const Shared<S>& shared;
  RingCursor ring, oldest;  // oldest: of the loads that may still be on their way
  int32_t num_loads = 0;

  __device__ void load(int32_t tile, int32_t step) {
    if (num_loads >= shared.num_stages) wait_barrier(shared.empty(ring.stage), ring.phase ^ 1);
    if (num_loads >= a.in_flight) {
      wait_barrier(shared.full(oldest.stage), oldest.phase);
      oldest.advance(shared.num_stages);
    }
    if constexpr (kIsFourBit<kFormat>) {
      load_groups(tile, step);
    } else {
      arrive_and_expect(shared.full(ring.stage), kLoadBytes);
    }
    const uint32_t to = shared.weights + ring.stage * shared.stage_bytes;
    for (int box = 0; box < 2; ++box) {
      copy_box(to + box * kBoxBytes, &a.weight,
               weight_box_at(a.silu_mul, tile * kBoxRows,
                             (part.first_step + step) * kStepColumns + box * kBoxColumns),
               shared.full(ring.stage), CachePolicy::kEvictFirst);
    }
    ring.advance(shared.num_stages);
    ++num_loads;
  }

  // First of a load.
  __device__ void load_groups(int32_t tile, int32_t step) {
    const Groups& groups = a.groups;
    const int4 at = groups_at(a.groups, a.silu_mul, tile * kBoxRows, part.first_step + step);
    const uint32_t to = shared.weights + ring.stage * shared.stage_bytes + kLoadBytes;
    const uint32_t full = shared.full(ring.stage);
    arrive_and_expect(full, kLoadBytes + (groups.has_zeros ? 2 : 1) * groups.box_bytes);
    copy_box(to, &groups.scales, at, full, CachePolicy::kEvictFirst);
    if (!groups.has_zeros) return;
    copy_box(to + groups.box_bytes, &groups.zeros, at, full, CachePolicy::kEvictFirst);
  }

  // What may be on its way at once.
  __device__ void load_first() {
    fill_ring(a.in_flight);
    if (!a.is_dynamic && part.num_steps <= a.trigger) launch_dependents();
  }

  // Until there are so many loads, or as many as fit into the ring.
  __device__ void fill_ring(int32_t count) {
    count = min(min(count, shared.num_stages), part.num_steps);
#pragma unroll 1
    while (num_loads < count) load(part.first_tile(), num_loads);
  }

  __device__ void load_rest() {
    fill_ring(shared.num_stages);
    // Not before the previous kernel has ended: it may be one of the same weight.
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
template <class S, int kTokens, WeightFormat kFormat>
__device__ void load_x(const KernelArgs& a, const Part& part, const Shared<S>& shared) {
  constexpr int kOutside = -1;  // as a row: the copy gives zeros
  const int lane = threadIdx.x % 32;
  // Without given rows, one copy brings all.
  const int32_t num_copies = a.rows != nullptr ? kTokens : 1;
  using Loads = XLoads<kTokens, kFormat>;
  constexpr int kBoxes = 2 * Loads::kSteps;
  const Loads loads(a, part);
  RingCursor ring;
  int32_t load = 0;
  int t = 0;
  do {
#pragma unroll 1
    for (int32_t i_load = 0; i_load < loads.count; ++i_load, ++load) {
      if (load >= shared.num_x_stages) wait_barrier(shared.x_empty(ring.stage), ring.phase ^ 1);
      if (lane == 0) arrive_and_expect(shared.x_full(ring.stage), Loads::kBytes);
      __syncwarp();
#pragma unroll 1
      for (int i = lane; i < num_copies * kBoxes; i += 32) {
        const int box = i % kBoxes, copy = i / kBoxes;
        int32_t row = 0;
        if (a.rows != nullptr) row = copy < a.num_rows ? a.rows[copy] : kOutside;
        copy_box(shared.x + ring.stage * Loads::kBytes + box * S::kXBoxBytes + copy * kBoxColumns * 2, &a.x,
                 (loads.first + i_load) * (Loads::kSteps * kStepColumns) + box * kBoxColumns, row,
                 shared.x_full(ring.stage), CachePolicy::kEvictLast);
      }
      ring.advance(shared.num_x_stages);
    }
  } while (tile_of(a, shared, ++t) != kNoTile);
}

// The steps of a load of x, from number `first` of the load of W on. Each is loaded before the one before is
// added, in turns in two places.
template <int kSteps, class Products>
__device__ void add_steps(Products& products, uint32_t w, int first, uint32_t x, int x_bytes) {
  static_assert(kSteps == 1 || kSteps % 2 == 0);
  typename Products::Loaded even, odd;
  products.load(even, w, first, x);
#pragma unroll 1
  for (int step = 0; step < kSteps; step += 2) {
    if (kSteps > 1) products.load(odd, w, first + step + 1, x + (step + 1) * x_bytes);
    products.add(even, w, first + step);
    if (kSteps == 1) return;
    if (step + 2 < kSteps) products.load(even, w, first + step + 2, x + (step + 2) * x_bytes);
    products.add(odd, w, first + step + 1);
  }
}

template <class T, int kTokens, WeightFormat kFormat>
__device__ void multiply(const KernelArgs& a, const Part& part, const Shared<Shape<kTokens>>& shared) {
  using S = Shape<kTokens>;
  const int lane = threadIdx.x % 32;
  const int32_t trigger_at = max(part.num_steps - a.trigger, 0);
  using Loads = XLoads<kTokens, kFormat>;
  const Loads loads(a, part);
  RingCursor ring, x_ring;
  int32_t tile = part.first_tile();
#pragma unroll 1
  for (int t = 0; tile != kNoTile; ++t) {
    int32_t next = kNoTile;
    Products<T, kTokens, kFormat> products(a, tile, loads.first * Loads::kSteps);
#pragma unroll 1
    for (int32_t step = 0; step < part.num_steps; ++step) {
      if (step == trigger_at) {
        next = tile_of(a, shared, t + 1);
        if (next == kNoTile) launch_dependents();
      }
      wait_barrier(shared.full(ring.stage), ring.phase);
      const int32_t num_x_loads = loads.in_load(step);
#pragma unroll 1
      for (int i = 0; i < num_x_loads; ++i) {
        wait_barrier(shared.x_full(x_ring.stage), x_ring.phase);
        const uint32_t w = shared.weights + ring.stage * shared.stage_bytes;
        const uint32_t x = shared.x + x_ring.stage * Loads::kBytes;
        add_steps<Loads::kSteps>(products, w, i * Loads::kSteps, x, S::kXLoadBytes);
        const bool is_last = i == num_x_loads - 1;
        if (lane == 0) {
          if (is_last) arrive(shared.empty(ring.stage));
          arrive(shared.x_empty(x_ring.stage));
        }
        if (is_last) ring.advance(shared.num_stages);
        x_ring.advance(shared.num_x_stages);
      }
    }
    if (trigger_at == part.num_steps) {
      next = tile_of(a, shared, t + 1);
      if (next == kNoTile) launch_dependents();
    }
    finish<T, S>(a, part, shared, tile, products.sums);
    tile = next;
  }
}

template <class T, int kTokens, WeightFormat kFormat>
__global__ void __launch_bounds__(kThreads, 2) skinny_gemm_kernel(const __grid_constant__ KernelArgs a) {
  using S = Shape<kTokens>;
  extern __shared__ __align__(1024) unsigned char base[];
  const Shared<S> shared(base, a.layout, stage_bytes<kFormat>(a));
  const Part part(a);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  WeightLoader<S, kFormat> loader{a, part, shared};
  // The first loads go before all else: nothing of the block is in the instruction cache yet.
  if (warp == kMathWarps && lane == 0) {
    for (int i = 0; i < kMaxStages; ++i) init_barrier(shared.full(i), 1);
    fence_barrier_init();
    loader.load_first();
  } else if (warp == 0 && lane < kNumOtherBarriers) {
    init_barrier(shared.other_barriers() + 8 * lane, lane < kMaxStages + kMaxXStages ? kMathWarps : 1);
    fence_barrier_init();
  }
  __syncthreads();  // the barriers
  if (part.parts > 1) arrive_at_cluster();
  if (warp < kMathWarps) {
    wait_for_dependencies();
    multiply<T, kTokens, kFormat>(a, part, shared);
  } else if (warp == kMathWarps) {
    if (lane == 0) loader.load_rest();
  } else {
    wait_for_dependencies();
    load_x<S, kTokens, kFormat>(a, part, shared);
  }
}

template <class T, int kTokens, WeightFormat kFormat>
void launch_tokens(LaunchConfig config, KernelArgs args) {
  const auto kernel = skinny_gemm_kernel<T, kTokens, kFormat>;
  using Loads = XLoads<kTokens, kFormat>;
  args.layout = make_layout<Shape<kTokens>>(args.parts_log2, args.silu_mul, args.blocks_per_sm,
                                            stage_bytes<kFormat>(args), Loads::kBytes, Loads::kMinStages);
  args.in_flight = std::min(args.in_flight, args.layout.num_stages);
  config.block = kThreads;
  config.shared_bytes = args.layout.barriers + kBarrierBytes;
  // All that the SM has: blocks of two GEMMs need it.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "skinny_gemm");
  launch("skinny_gemm", kernel, config, args);
}

template <class T, WeightFormat kFormat>
void launch_kernel(int padded_rows, LaunchConfig config, KernelArgs args) {
  switch (padded_rows) {
    case 8:
      return launch_tokens<T, 8, kFormat>(config, args);
    case 16:
      return launch_tokens<T, 16, kFormat>(config, args);
    case 24:
      return launch_tokens<T, 24, kFormat>(config, args);
    case 32:
      return launch_tokens<T, 32, kFormat>(config, args);
    default:
      break;
  }
  if constexpr (kFormat == WeightFormat::k16Bits) {
    if (padded_rows == 48) return launch_tokens<T, 48, kFormat>(config, args);
    return launch_tokens<T, 64, kFormat>(config, args);
  }
}

}  // namespace quire::cuda::gemm
