#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "quire/cuda/moe.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kMaxExperts = 512;

// The sum over the threads before this one. Every thread of the block must call it.
__device__ int32_t sum_before(int32_t value) {
  __shared__ int32_t warp_sums[kThreads / kWarpSize];
  static_assert(kThreads == kWarpSize * kWarpSize);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const auto inclusive_in_warp = [&](int32_t sum) {
#pragma unroll
    for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
      const int32_t below = __shfl_up_sync(kAllLanes, sum, lanes);
      if (lane >= lanes) sum += below;
    }
    return sum;
  };
  const int32_t inclusive = inclusive_in_warp(value);
  __syncthreads();  // the sums of a call before this one are read
  if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  if (warp == 0) warp_sums[lane] = inclusive_in_warp(warp_sums[lane]);
  __syncthreads();
  return inclusive - value + (warp == 0 ? 0 : warp_sums[warp - 1]);
}

// Grid: 1. A thread takes entries, then an expert, then entries again. The order of an expert's rows is not
// fixed, which changes no result: each row is computed by itself.
__global__ void __launch_bounds__(kThreads, 1) sort_kernel(MoeSortParams p) {
  __shared__ int32_t next_row[kMaxExperts];  // first, the number of the expert's entries
  launch_dependents();
  const int e = threadIdx.x;
  if (e < p.num_experts) next_row[e] = 0;
  __syncthreads();
  wait_for_dependencies();
  for (int32_t i = threadIdx.x; i < p.num_entries; i += kThreads) atomicAdd(&next_row[p.ids[i]], 1);
  __syncthreads();
  const int32_t count = e < p.num_experts ? next_row[e] : 0;
  const int32_t num_tiles = (count + p.tile_rows - 1) / p.tile_rows;
  const int32_t first_row = sum_before(count), first_tile = sum_before(num_tiles);
  if (e < p.num_experts) next_row[e] = first_row;
  int4* const tiles = reinterpret_cast<int4*>(p.tiles);
  for (int32_t t = 0; t < num_tiles; ++t) {
    const int32_t begin = t * p.tile_rows;
    tiles[first_tile + t] = make_int4(e, first_row + begin, min(count - begin, p.tile_rows), 0);
  }
  if (e == p.num_experts - 1) *p.num_tiles = first_tile + num_tiles;
  __syncthreads();
  for (int32_t i = threadIdx.x; i < p.num_entries; i += kThreads) {
    const int32_t row = atomicAdd(&next_row[p.ids[i]], 1);
    p.entry_of_row[row] = i;
    p.row_of_entry[i] = row;
  }
}

}  // namespace

void launch_moe_sort(const MoeSortParams& p, cudaStream_t stream) {
  check_range("num_entries", p.num_entries, 0, INT32_MAX - kThreads);
  check_range("num_experts", p.num_experts, 1, kMaxExperts);
  check_range("tile_rows", p.tile_rows, 1, 1 << 16);
  if (!is_aligned(p.tiles, 16)) refuse("tiles", "another address", "a multiple of 16 bytes");
  LaunchConfig config;
  config.grid = 1;
  config.block = kThreads;
  config.overlaps = true;
  config.stream = stream;
  launch("moe_sort", sort_kernel, config, p);
}

}  // namespace quire::cuda
