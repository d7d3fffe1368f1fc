// A row of logits with a temperature, and what every way of sampling with top_k or top_p does with it.
//
// Probabilities are integers: exp((logit - max) / temperature) in units of 2^-44. Their sums are exact, so
// that no order of addition, and no atomic, changes which token is drawn.
#pragma once

#include <cstdint>

#include "common/reduce.cuh"
#include "quire/cuda/sampling.h"
#include "scan.cuh"

namespace quire::cuda::sampling {

constexpr int kNumBins = 2048;  // as in cpp/cpu/sample.cc: the bins decide the order of a wide nucleus
constexpr int kBinsPerBlock = kNumBins / kClusterSize;
constexpr int kMaxCandidates = 2048;
constexpr int kNumMaxima = kNumSegments * 8;  // one for every 4 threads
constexpr float kUnit = 17592186044416.0f;    // 2^44: 2^20 tokens as likely as the likeliest fit into 64 bits

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
    } totals;  // the leader's: of the row
    struct {
      uint64_t candidates[kMaxCandidates];  // the leader's: rank keys
      uint32_t maxima[kNumMaxima];          // keys of the largest logits that each 4 threads saw
    };
  };
  Finding findings[2][kNumSegments];      // of the first pass, and of a second one
  uint64_t exchange[2][kClusterSize][2];  // what each block of the cluster has told this one
  uint64_t warp_sums[kNumWarps];
  uint64_t scratch[kNumWarps];
  uint64_t found_before;
  int32_t found;
  uint32_t num_candidates;
  Plan plan;
  bool is_undecided;  // by the shortcut
  // Set by the leader: the ids of the bins before plan.last_bin are to be walked up to this mass, if there is
  // one.
  bool walk_ids;
  uint64_t walk_target;
};

__device__ inline bool has_penalties(const SampleParams& p, int row_idx) {
  return p.token_counts != nullptr && (p.repetition_penalty[row_idx] != 1 ||
                                       p.presence_penalty[row_idx] != 0 || p.frequency_penalty[row_idx] != 0);
}

__device__ inline uint16_t* counts_of(const SampleParams& p, int row_idx) {
  return p.token_counts + static_cast<int64_t>(p.sample_rows[row_idx]) * p.vocab_size;
}

__device__ inline bool has_biases(const SampleParams& p, int row_idx) {
  return p.bias_offsets != nullptr && p.bias_offsets[row_idx] != p.bias_offsets[row_idx + 1];
}

// Where a row's id goes. Written by one thread of the cluster.
struct Result {
  const SampleParams& params;
  int row_idx;

  __device__ void write(int32_t id) const {
    params.out[row_idx] = id;
    if (params.last_token_ids != nullptr) params.last_token_ids[params.sample_rows[row_idx]] = max(id, 0);
    if (id < 0 || !has_penalties(params, row_idx)) return;
    uint16_t& entry = counts_of(params, row_idx)[id];
    if ((entry & kMaxCount) != kMaxCount) ++entry;
  }
};

struct ClusterSum {
  uint64_t total[2];
  uint64_t before[2];  // of the blocks with smaller ids
};

// Like the CPU: finite even for a denormal temperature, and the same bins. Never 0: -inf * 0 is NaN.
__device__ inline float inverse_of(float temperature) {
  return fmaxf(fminf(1.0f / temperature, kLargestFloat), 1e-30f);
}

// For exponents of 2.
__device__ inline float scale_of(float temperature) {
  return fminf(inverse_of(temperature) * 1.44269504f, kLargestFloat);
}

// All methods are called by all threads of the block, those marked "cluster" by all blocks of the cluster.
template <class T, bool kAdjusted = false>
struct Row : RowView<T, kAdjusted> {
  using RowView<T, kAdjusted>::begin, RowView<T, kAdjusted>::size;

  Shared& shared;
  float max = 0;  // of the row
  float inverse_temperature = 0;
  float scale = 0;
  float bin_width = 0;
  int exchange_idx = 0;

  __device__ Row(Shared& shared, const T* row, int vocab_size)
      : RowView<T, kAdjusted>(row, vocab_size, cg::this_cluster().block_rank()), shared(shared) {}

  __device__ uint64_t mass_of(float logit) const {
    return __float2ull_rn(expf((logit - max) * inverse_temperature) * kUnit);
  }

  // Bin b holds the logits that are b to b + 1 widths below the maximum.
  __device__ int bin_of(float logit) const {
    return static_cast<int>(fminf((max - logit) / bin_width, static_cast<float>(kNumBins - 1)));
  }

  __device__ void set_temperature(float temperature) {
    inverse_temperature = inverse_of(temperature);
    bin_width = 104.0f / inverse_temperature / kNumBins;
    scale = scale_of(temperature);
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

  // Cluster. Sums of weight(logit) over the row, in total[0], and over the ids before this slice.
  template <class Weight>
  __device__ ClusterSum sum_ids(Weight weight) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    uint64_t sum = 0;
    this->for_each_vector([&](const auto& values, int) {
#pragma unroll
      for (const float value : values) sum += weight(value);
    });
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
    const int first = min(size, warp * this->segment_size), end = min(size, first + this->segment_size);
    const int found = find_crossing(end - first, rest, [&](int i) { return weight(this->logit(first + i)); });
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
