// top_k and top_p where few tokens decide: a histogram of the row over logits finds the bin in which the set
// ends; the tokens up to it, or those of that bin alone, are gathered by the cluster's first block, the
// leader, and sorted.
#pragma once

#include "row.cuh"

namespace quire::cuda::sampling {

constexpr int kFirstGuess = 128;  // as in cpp/cpu/sample.cc: a nucleus up to this is walked in rank order

// 64-bit sums in shared memory from 32-bit atomics, which are native.
__device__ inline void add_mass(uint32_t* low, uint32_t* high, uint64_t mass) {
  const uint32_t add = static_cast<uint32_t>(mass);
  const bool carry = atomicAdd(low, add) > ~add;
  const uint32_t add_high = static_cast<uint32_t>(mass >> 32) + carry;
  if (add_high != 0) atomicAdd(high, add_high);
}

// Cluster. Fills shared.totals of the leader.
template <class T, bool kAdjusted>
__device__ void build_histogram(Row<T, kAdjusted>& row, bool with_mass) {
  const cg::cluster_group cluster = cg::this_cluster();
  Shared& shared = row.shared;
  for (int i = threadIdx.x; i < kNumBins; i += kThreads) {
    shared.histogram.count[i] = shared.histogram.mass_low[i] = shared.histogram.mass_high[i] = 0;
  }
  __syncthreads();
  row.for_each_vector([&](const auto& values, int) {
#pragma unroll
    for (const float logit : values) {
      if (key_of(logit) <= kMinusInfKey) continue;
      const int bin = row.bin_of(logit);
      atomicAdd(&shared.histogram.count[bin], 1u);
      if (!with_mass) continue;
      const uint64_t mass = row.mass_of(logit);
      if (mass != 0) add_mass(&shared.histogram.mass_low[bin], &shared.histogram.mass_high[bin], mass);
    }
  });
  cluster.sync();

  static_assert(kBinsPerBlock == kThreads, "each thread adds up one bin");
  const int bin = cluster.block_rank() * kBinsPerBlock + threadIdx.x;
  uint32_t count = 0;
  uint64_t mass = 0;
  for (int rank = 0; rank < kClusterSize; ++rank) {
    const Shared& remote = *cluster.map_shared_rank(&shared, rank);
    count += remote.histogram.count[bin];
    mass += (static_cast<uint64_t>(remote.histogram.mass_high[bin]) << 32) + remote.histogram.mass_low[bin];
  }
  cluster.sync();  // nobody reads a histogram any more: the leader's becomes the totals
  Shared& leader = *cluster.map_shared_rank(&shared, 0);
  leader.totals.count[bin] = count;
  leader.totals.mass[bin] = mass;
  cluster.sync();
}

// Leader. From shared.totals, for all blocks: where the set ends, and what to gather.
template <class T, bool kAdjusted>
__device__ Plan make_plan(Row<T, kAdjusted>& row, int top_k, float top_p) {
  Shared& shared = row.shared;
  const auto mass = [&](int bin) { return shared.totals.mass[bin]; };
  const auto count = [&](int bin) { return static_cast<uint64_t>(shared.totals.count[bin]); };
  Plan plan{};
  int last_bin;
  if (top_k > 0) {
    last_bin = row.find_crossing(kNumBins, top_k - 1, count);
  } else {
    plan.total_mass = row.sum_first(kNumBins, mass);
    last_bin = row.find_crossing(kNumBins, mass_limit(top_p, plan.total_mass), mass);
  }
  plan.last_bin = min(last_bin, kNumBins - 1);  // fewer than top_k tokens: all of them
  plan.count_before = static_cast<uint32_t>(row.sum_first(plan.last_bin, count));
  plan.mass_before = row.sum_first(plan.last_bin, mass);
  const uint32_t in_bin = shared.totals.count[plan.last_bin];
  if (plan.count_before + in_bin <= kMaxCandidates) {
    plan.first_bin = 0;
  } else if (top_k == 0 && plan.count_before >= kFirstGuess && in_bin <= kMaxCandidates) {
    plan.first_bin = plan.last_bin;
  } else {
    plan.first_bin = -1;
  }
  return plan;
}

// Cluster. The tokens of bins [first_bin, last_bin] to the leader's candidates, in any order.
template <class T, bool kAdjusted>
__device__ void gather_candidates(Row<T, kAdjusted>& row, int first_bin, int last_bin) {
  const cg::cluster_group cluster = cg::this_cluster();
  Shared& leader = *cluster.map_shared_rank(&row.shared, 0);
  const int lane = threadIdx.x % kWarpSize;
  row.for_each_vector([&](const auto& values, int i) {
#pragma unroll
    for (const float logit : values) {
      const int id = row.begin + i++;
      const int bin = row.bin_of(logit);
      const bool is_candidate = key_of(logit) > kMinusInfKey && bin >= first_bin && bin <= last_bin;
      const unsigned votes = __ballot_sync(kAllLanes, is_candidate);
      if (votes == 0) continue;
      uint32_t place = 0;
      if (lane == 0) place = atomicAdd(&leader.num_candidates, static_cast<uint32_t>(__popc(votes)));
      place = __shfl_sync(kAllLanes, place, 0) + __popc(votes & ((1u << lane) - 1));
      if (is_candidate && place < kMaxCandidates) leader.candidates[place] = rank_key(logit, id);
    }
  });
  cluster.sync();
}

// Leader. Bitonic sort of the candidates, largest first. Every candidate differs, so any order of arrival
// gives the same result.
__device__ inline void sort_candidates(uint64_t* candidates, int count) {
  int padded = 2;
  while (padded < count) padded *= 2;
  for (int i = count + threadIdx.x; i < padded; i += kThreads) candidates[i] = 0;
  for (int length = 2; length <= padded; length *= 2) {
    for (int distance = length / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int pair = threadIdx.x; pair < padded / 2; pair += kThreads) {
        const int i = pair / distance * 2 * distance + pair % distance, j = i + distance;
        const uint64_t a = candidates[i], b = candidates[j];
        if ((a < b) == ((i & length) == 0)) {
          candidates[i] = b;
          candidates[j] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Leader. Draws from the sorted candidates, to out; or asks the cluster to walk the ids (shared.walk_ids).
template <class T, bool kAdjusted>
__device__ void draw_from_candidates(Row<T, kAdjusted>& row, const Plan& plan, int top_k, float top_p,
                                     double u, const Result& out) {
  Shared& shared = row.shared;
  const auto mass = [&](int i) { return row.mass_of(logit_of(shared.candidates[i] >> 32)); };
  int num_kept = static_cast<int>(min(shared.num_candidates, static_cast<uint32_t>(kMaxCandidates)));
  sort_candidates(shared.candidates, num_kept);

  // Mass in front of the first candidate.
  const uint64_t mass_before = plan.first_bin > 0 ? plan.mass_before : 0;
  if (top_k > 0) num_kept = min(num_kept, top_k);
  if (top_p < 1) {
    const uint64_t total = top_k > 0 ? row.sum_first(num_kept, mass) : plan.total_mass;
    const uint64_t limit = mass_limit(top_p, total);
    num_kept = min(num_kept, row.find_crossing(num_kept, limit - min(limit, mass_before), mass) + 1);
  }
  const uint64_t target = draw_target(u, mass_before + row.sum_first(num_kept, mass));
  const bool is_wide = top_k == 0 && (plan.first_bin > 0 || num_kept > kFirstGuess);
  const bool walk_ids = is_wide && target < plan.mass_before;
  if (!walk_ids) {
    const int found = row.find_crossing(num_kept, target - mass_before, mass);
    if (threadIdx.x == 0) out.write(id_of(shared.candidates[found]));
  }
  if (threadIdx.x < kClusterSize) {
    Shared& remote = *cg::this_cluster().map_shared_rank(&shared, threadIdx.x);
    remote.walk_ids = walk_ids;
    remote.walk_target = target;
  }
}

}  // namespace quire::cuda::sampling
