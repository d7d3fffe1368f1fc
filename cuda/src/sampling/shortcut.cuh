// top_k, and top_p where the first kFirstGuess tokens hold that much: the usual case of both.
//
// Every thread of the cluster knows the largest logit among the ids that it looked at. The k-th largest of
// these bounds the k-th largest logit of the row from below, so only the tokens above such a bound are
// gathered by the leader and sorted. The bound is rounded to bins of a histogram, which holds one entry per
// thread.
#pragma once

#include "bins.cuh"

namespace quire::cuda::sampling {

constexpr int kMaxShortcut = 1024;  // largest top_k: half of the threads in the cluster

// Leader, before the cluster's first barrier.
__device__ inline void prepare_shortcut(Shared& shared) {
  for (int i = threadIdx.x; i < kNumBins; i += kThreads) shared.histogram.count[i] = 0;
  if (threadIdx.x == 0) shared.num_candidates = 0;
}

// Leader. Draws from the gathered candidates, to out; false when they do not decide.
template <class T>
__device__ bool draw_shortcut(Row<T>& row, uint64_t total_mass, int top_k, float top_p, double u,
                              const Result& out) {
  Shared& shared = row.shared;
  const int num_candidates = shared.num_candidates;
  if (num_candidates > kMaxCandidates) return false;
  sort_candidates(shared.candidates, num_candidates);
  const auto mass = [&](int i) { return row.mass_of(logit_of(shared.candidates[i] >> 32)); };
  int num_kept = min(num_candidates, top_k > 0 ? top_k : kFirstGuess);
  if (top_p < 1) {
    const uint64_t total = top_k > 0 ? row.sum_first(num_kept, mass) : total_mass;
    const int last = row.find_crossing(num_kept, mass_limit(top_p, total), mass);
    if (last == num_kept) return false;  // the nucleus is wider than the guess
    num_kept = last + 1;
  }
  const int found = row.find_crossing(num_kept, draw_target(u, row.sum_first(num_kept, mass)), mass);
  if (threadIdx.x == 0) out.write(static_cast<int32_t>(~static_cast<uint32_t>(shared.candidates[found])));
  return true;
}

// Cluster. Draws to out, or returns false. thread_max: the largest logit that this thread saw, -inf if none.
template <class T>
__device__ bool try_shortcut(Row<T>& row, float thread_max, int top_k, float top_p, double u,
                             const Result& out) {
  constexpr int kSize = kVecSize<T>;
  const cg::cluster_group cluster = cg::this_cluster();
  Shared& shared = row.shared;
  Shared& leader = *cluster.map_shared_rank(&shared, 0);
  if (key_of(thread_max) > kMinusInfKey) atomicAdd(&leader.histogram.count[row.bin_of(thread_max)], 1u);
  uint64_t mass = 0;
  if (top_k == 0) {
    row.for_each_seen(
        [&](const Vec<T, kSize>& vec, int) {
#pragma unroll
          for (int j = 0; j < kSize; ++j) mass += row.mass_of(to_float(vec[j]));
        },
        [&](float logit, int) { mass += row.mass_of(logit); });
    mass = block_reduce(mass, Sum(), shared.scratch);
  }
  const uint64_t total_mass = row.sum_over_cluster(mass, 0).total[0];

  if (cluster.block_rank() == 0) {
    const auto count = [&](int bin) { return static_cast<uint64_t>(shared.histogram.count[bin]); };
    const int last_bin = row.find_crossing(kNumBins, (top_k > 0 ? top_k : kFirstGuess) - 1, count);
    // A little below the bin's lower edge: any cutoff at which enough tokens are gathered will do. In the
    // last bin, and with too few threads that saw a token, that is all of them.
    const float edge = row.max - (last_bin + 1.01f) * row.bin_width;
    const float cutoff = last_bin < kNumBins - 1 ? fmaxf(edge, -kLargestFloat) : -kLargestFloat;
    if (threadIdx.x < kClusterSize) cluster.map_shared_rank(&shared, threadIdx.x)->cutoff = cutoff;
  }
  cluster.sync();

  const float cutoff = shared.cutoff;
  const auto consider = [&](float logit, int i) {
    if (logit < cutoff) return;
    const uint32_t place = atomicAdd(&leader.num_candidates, 1u);
    if (place < kMaxCandidates) {
      leader.candidates[place] =
          (static_cast<uint64_t>(key_of(logit)) << 32) | ~static_cast<uint32_t>(row.begin + i);
    }
  };
  // A thread whose largest logit is below the cutoff saw no candidate.
  if (thread_max >= cutoff) {
    row.for_each_seen(
        [&](const Vec<T, kSize>& vec, int i) {
#pragma unroll
          for (int j = 0; j < kSize; ++j) consider(to_float(vec[j]), i + j);
        },
        consider);
  }
  cluster.sync();

  if (cluster.block_rank() == 0) {
    const bool is_undecided = !draw_shortcut(row, total_mass, top_k, top_p, u, out);
    if (threadIdx.x < kClusterSize)
      cluster.map_shared_rank(&shared, threadIdx.x)->is_undecided = is_undecided;
  }
  cluster.sync();
  return !shared.is_undecided;
}

}  // namespace quire::cuda::sampling
