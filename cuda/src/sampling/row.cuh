// One row of logits in the shared memory of a cluster, and what every way of sampling does with it.
//
// The blocks of a cluster split a row into slices of consecutive ids. A slice is read from global memory
// once; all later passes read shared memory. Probabilities are integers: exp((logit - max) / temperature) in
// units of 2^-44. Their sums are exact, so that no order of addition, and no atomic, changes which token is
// drawn.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "quire/cuda/sample.h"

namespace quire::cuda::sampling {

namespace cg = cooperative_groups;

constexpr int kClusterSize = 8;
constexpr int kThreads = 256;
constexpr int kNumWarps = kThreads / kWarpSize;
constexpr int kNumBins = 2048;  // as in cpp/cpu/sample.cc: the bins decide the order of a wide nucleus
constexpr int kBinsPerBlock = kNumBins / kClusterSize;
constexpr int kMaxCandidates = 2048;
constexpr float kUnit = 17592186044416.0f;  // 2^44: 2^20 tokens as likely as the likeliest fit into 64 bits
constexpr float kLargestFloat = 3.402823466e38f;
constexpr uint32_t kMinusInfKey = 0x007fffffu;

// What the leader tells the other blocks, once the histogram is known.
struct Plan {
  uint64_t total_mass;    // of the row; with top_k: unused
  uint64_t mass_before;   // of the bins before last_bin
  uint32_t count_before;  // tokens in them
  int32_t first_bin;      // bins [first_bin, last_bin] are gathered and sorted; -1: too many tokens for that
  int32_t last_bin;       // where top_k or top_p is reached
};

struct Shared {
  union {
    struct {
      uint32_t count[kNumBins], mass_low[kNumBins], mass_high[kNumBins];
    } histogram;  // of this block's slice
    struct {
      uint64_t mass[kNumBins];
      uint32_t count[kNumBins];
    } totals;                             // the leader's: of the row
    uint64_t candidates[kMaxCandidates];  // the leader's: key << 32 | ~id, so that larger ranks before
  };
  uint64_t exchange[2][kClusterSize][2];  // what each block of the cluster has told this one
  uint64_t warp_sums[kNumWarps];
  uint64_t scratch[kNumWarps];
  uint64_t found_before;
  int32_t found;
  uint32_t num_candidates;
  Plan plan;
  float cutoff;       // of the shortcut: tokens from this logit on are gathered
  bool is_undecided;  // by the shortcut
  // Set by the leader: the ids of the bins before plan.last_bin are to be walked up to this mass, if there is
  // one.
  bool walk_ids;
  uint64_t walk_target;
};

// Larger keys are larger logits; -0 equals 0.
__device__ inline uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ inline float logit_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Where a row's id goes. Written by one thread of the cluster.
struct Result {
  int32_t* id;
  int32_t* last_token_id;  // may be null

  __device__ void write(int32_t value) const {
    *id = value;
    if (last_token_id != nullptr) *last_token_id = max(value, 0);
  }
};

struct ClusterSum {
  uint64_t total[2];
  uint64_t before[2];  // of the blocks with smaller ids
};

// One block's view of a row. All methods are called by all threads of the block, those marked "cluster" by
// all blocks of the cluster.
template <class T>
struct Row {
  Shared& shared;
  T* logits;      // [size], shared memory
  int32_t begin;  // id of logits[0]
  int32_t size;   // 0 for blocks past a short row's end
  float max = 0;  // of the row
  float inverse_temperature = 0;
  float bin_width = 0;
  int exchange_idx = 0;

  __device__ float logit(int i) const { return to_float(logits[i]); }

  __device__ uint64_t mass_of(float logit) const {
    return __float2ull_rn(expf((logit - max) * inverse_temperature) * kUnit);
  }

  // Bin b holds the logits that are b to b + 1 widths below the maximum.
  __device__ int bin_of(float logit) const {
    return static_cast<int>(fminf((max - logit) / bin_width, static_cast<float>(kNumBins - 1)));
  }

  __device__ void set_temperature(float temperature) {
    // As on the CPU: finite even for a denormal temperature, and the same bins. Never 0: -inf * 0 is NaN.
    inverse_temperature = fmaxf(fminf(1.0f / temperature, kLargestFloat), 1e-30f);
    bin_width = 104.0f / inverse_temperature / kNumBins;
  }

  // The ids that this thread looks at when it reads the slice 16 bytes at a time: whole(vec, i) for the
  // vectors from logits[i] on, single(logit, i) for what is left at the end.
  template <class Whole, class Single>
  __device__ void for_each_seen(Whole whole, Single single) const {
    constexpr int kSize = kVecSize<T>;
    const int end = size / kSize * kSize;
#pragma unroll 4
    for (int i = threadIdx.x * kSize; i < end; i += kThreads * kSize)
      whole(load_vec<T, kSize>(logits + i), i);
    const int rest = end + static_cast<int>(threadIdx.x);
    if (rest < size) single(logit(rest), rest);
  }

  // Cluster. Tells a and b to every block; returns what every block told, which lasts until the next call but
  // one: by then every block has passed a barrier behind its reading.
  __device__ const uint64_t (*tell_cluster(uint64_t a, uint64_t b))[2] {
    const cg::cluster_group cluster = cg::this_cluster();
    uint64_t (&told)[kClusterSize][2] = shared.exchange[exchange_idx];
    exchange_idx ^= 1;
    if (threadIdx.x < kClusterSize) {
      uint64_t* remote = cluster.map_shared_rank(&told[cluster.block_rank()][0], threadIdx.x);
      remote[0] = a;
      remote[1] = b;
    }
    cluster.sync();
    return told;
  }

  // Cluster. Sums of a and b over the blocks.
  __device__ ClusterSum sum_over_cluster(uint64_t a, uint64_t b) {
    const uint64_t (*told)[2] = tell_cluster(a, b);
    const unsigned own_rank = cg::this_cluster().block_rank();
    ClusterSum sum{};
    for (unsigned rank = 0; rank < kClusterSize; ++rank) {
      if (rank == own_rank) {
        sum.before[0] = sum.total[0];
        sum.before[1] = sum.total[1];
      }
      sum.total[0] += told[rank][0];
      sum.total[1] += told[rank][1];
    }
    return sum;
  }

  // First i in [0, n) at which the running sum of weight(i) exceeds target, and the sum before it
  // (shared.found_before); n when there is none. The same in all threads.
  template <class Weight>
  __device__ int find_crossing(int n, uint64_t target, Weight weight) {
    const int run = (n + kThreads - 1) / kThreads;
    const int first = min(n, static_cast<int>(threadIdx.x) * run), end = min(n, first + run);
    uint64_t sum = 0;
    for (int i = first; i < end; ++i) sum += weight(i);

    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    uint64_t up_to = sum;  // inclusive scan
#pragma unroll
    for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
      const uint64_t other = __shfl_up_sync(kAllLanes, up_to, lanes);
      if (lane >= lanes) up_to += other;
    }
    __syncthreads();  // the scratch and the result of a call before this one have been read
    if (lane == kWarpSize - 1) shared.scratch[warp] = up_to;
    if (threadIdx.x == 0) shared.found = n;
    __syncthreads();
    for (int i = 0; i < warp; ++i) up_to += shared.scratch[i];

    uint64_t running = up_to - sum;
    if (running <= target && target < up_to) {
      for (int i = first;; ++i) {
        const uint64_t next = running + weight(i);
        if (target < next) {
          shared.found = i;
          shared.found_before = running;
          break;
        }
        running = next;
      }
    }
    __syncthreads();
    return shared.found;
  }

  template <class Weight>
  __device__ uint64_t sum_first(int n, Weight weight) {
    uint64_t sum = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) sum += weight(i);
    return block_reduce(sum, Sum(), shared.scratch);
  }

  // Ids that one warp sums up: consecutive ones, so that a sum per warp finds the place of a target.
  __device__ int ids_per_warp() const {
    const int ids = (size + kNumWarps - 1) / kNumWarps;
    return (ids + kVecSize<T> - 1) / kVecSize<T> * kVecSize<T>;
  }

  // Cluster. Sums of weight(logit) over the row, in total[0], and over the ids before this slice.
  template <class Weight>
  __device__ ClusterSum sum_ids(Weight weight) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    constexpr int kSize = kVecSize<T>;
    const int first = min(size, warp * ids_per_warp()), end = min(size, first + ids_per_warp());
    const int whole = first + (end - first) / kSize * kSize;
    uint64_t sum = 0;
#pragma unroll 2
    for (int i = first + lane * kSize; i < whole; i += kWarpSize * kSize) {
      const Vec<T, kSize> vec = load_vec<T, kSize>(logits + i);
#pragma unroll
      for (int j = 0; j < kSize; ++j) sum += weight(to_float(vec[j]));
    }
    if (whole + lane < end) sum += weight(logit(whole + lane));
    sum = warp_reduce(sum, Sum());
    __syncthreads();
    if (lane == 0) shared.warp_sums[warp] = sum;
    __syncthreads();
    uint64_t mine = 0;
    for (int i = 0; i < kNumWarps; ++i) mine += shared.warp_sums[i];
    return sum_over_cluster(mine, 0);
  }

  // Cluster. The id at which the running sum of weight over the ids exceeds target, to out, by the block that
  // has it. sums is what sum_ids returned, just before; target < sums.total[0].
  template <class Weight>
  __device__ void write_crossing_id(const ClusterSum& sums, uint64_t target, Weight weight,
                                    const Result& out) {
    uint64_t rest = target - sums.before[0];  // wraps when the target lies before this slice
    if (target < sums.before[0]) return;
    int warp = 0;
    while (warp < kNumWarps && rest >= shared.warp_sums[warp]) rest -= shared.warp_sums[warp++];
    if (warp == kNumWarps) return;
    const int first = min(size, warp * ids_per_warp()), end = min(size, first + ids_per_warp());
    const int found = find_crossing(end - first, rest, [&](int i) { return weight(logit(first + i)); });
    if (threadIdx.x == 0) out.write(begin + first + found);
  }
};

// p of a total: the running sum reaches this share of it once it exceeds the result.
__device__ inline uint64_t mass_limit(float p, uint64_t total) {
  const double mass = ceil(static_cast<double>(p) * static_cast<double>(total));
  return mass >= 1 ? min(static_cast<uint64_t>(mass), total) - 1 : 0;
}

// Where the draw u falls in a total: the token at which the running sum exceeds the result.
__device__ inline uint64_t draw_target(double u, uint64_t total) {
  return min(static_cast<uint64_t>(u * static_cast<double>(total)), total - 1);
}

}  // namespace quire::cuda::sampling
