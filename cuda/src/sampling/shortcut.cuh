// top_k, and top_p where the first kFirstGuess tokens hold that much: the usual case of both.
//
// The k-th largest of the maxima of 512 groups of 4 threads bounds the k-th largest logit of the row from
// below. Every warp finds that bound for itself; the tokens from it on are gathered by the leader, ranked and
// drawn from by one warp.
#pragma once

#include "bins.cuh"

namespace quire::cuda::sampling {

constexpr int kMaxShortcut = 448;  // largest top_k: 7/8 of the groups; more would gather too much
constexpr int kFew = kThreads;     // candidates that are ranked by counting, one per thread

// This thread's group's largest logit to all blocks. A barrier of the cluster follows.
__device__ inline void tell_maxima(Shared& shared, float thread_max) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  uint32_t key = key_of(thread_max);
  key = max(key, __shfl_xor_sync(kAllLanes, key, 1));
  key = max(key, __shfl_xor_sync(kAllLanes, key, 2));
  key = __shfl_sync(kAllLanes, key, lane % 8 * 4);
  uint32_t* place = &shared.maxima[(cluster.block_rank() * kNumWarps + warp) * 8 + lane % 8];
#pragma unroll
  for (int rank = lane / 8; rank < kClusterSize; rank += kWarpSize / 8) {
    *cluster.map_shared_rank(place, rank) = key;
  }
}

// Warp. A logit that at least n of the row's tokens reach, if so many are above -inf. Among the largest such
// whose key ends in 16 zeros; -kLargestFloat when it is lower than that.
__device__ inline float bound_of(const Shared& shared, int n) {
  constexpr int kPerLane = kNumMaxima / kWarpSize;
  uint32_t keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) keys[i] = shared.maxima[i * kWarpSize + threadIdx.x % kWarpSize];
  uint32_t bound = 0;
#pragma unroll 1
  for (uint32_t bit = 1u << 31; bit >= 1u << 16; bit >>= 1) {
    const uint32_t larger = bound | bit;
    int count = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) count += keys[i] >= larger;
    if (__reduce_add_sync(kAllLanes, count) >= n) bound = larger;
  }
  return bound > kMinusInfKey ? logit_of(bound) : -kLargestFloat;
}

// This warp's tokens from cutoff on to the leader's candidates, in any order. A barrier of the cluster
// follows.
template <bool kPlain, class T, bool kAdjusted>
__device__ void gather_from(Row<T, kAdjusted>& row, const Segment& segment, float thread_max, float cutoff) {
  constexpr int kSize = RowView<T, kAdjusted>::kSize;
  if (!__any_sync(kAllLanes, thread_max >= cutoff)) return;
  Shared& leader = *cg::this_cluster().map_shared_rank(&row.shared, 0);
  const int lane = threadIdx.x % kWarpSize;
  const auto for_each_candidate = [&](auto use) {
    row.template for_each_vector<kPlain>(segment, [&](const auto& values, int i) {
      if (thread_max < cutoff) return;
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        if (values[k] >= cutoff) use(values[k], i + k);
      }
    });
  };
  int count = 0;
  for_each_candidate([&](float, int) { ++count; });
  int up_to = count;
#pragma unroll
  for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
    const int other = __shfl_up_sync(kAllLanes, up_to, lanes);
    if (lane >= lanes) up_to += other;
  }
  uint32_t place = 0;
  if (lane == kWarpSize - 1 && up_to > 0) {
    place = atomicAdd(&leader.num_candidates, static_cast<uint32_t>(up_to));
  }
  place = __shfl_sync(kAllLanes, place, kWarpSize - 1) + up_to - count;
  for_each_candidate([&](float logit, int i) {
    if (place < kMaxCandidates) leader.candidates[place] = rank_key(logit, row.begin + i);
    ++place;
  });
}

template <class T, bool kAdjusted>
__device__ void gather_from(Row<T, kAdjusted>& row, float thread_max, float cutoff) {
  const Segment segment = row.segment();
  if (row.is_plain(segment)) {
    gather_from<true>(row, segment, thread_max, cutoff);
  } else {
    gather_from<false>(row, segment, thread_max, cutoff);
  }
}

// Warp. First i in [0, kFew) at which the running sum exceeds target; the sum up to and with it. masses: of
// this lane's 8 consecutive ones; before: their running sum. kFew when there is none.
struct Crossing {
  int place;
  uint64_t up_to;
};

__device__ inline Crossing find_among_few(const uint64_t (&masses)[kFew / kWarpSize], uint64_t before,
                                          uint64_t target) {
  uint64_t running = before;
  Crossing mine{kFew, 0};
#pragma unroll
  for (int i = 0; i < kFew / kWarpSize; ++i) {
    running += masses[i];
    if (mine.place == kFew && running > target) {
      mine = {static_cast<int>(threadIdx.x % kWarpSize) * (kFew / kWarpSize) + i, running};
    }
  }
  const unsigned past = __ballot_sync(kAllLanes, mine.place < kFew);
  if (past == 0) return {kFew, 0};
  const int lane = __ffs(static_cast<int>(past)) - 1;
  return {__shfl_sync(kAllLanes, mine.place, lane), __shfl_sync(kAllLanes, mine.up_to, lane)};
}

// This thread's candidate and its rank; key 0 behind the last candidate.
struct Ranked {
  uint64_t key;
  int rank;
};

// Leader. By counting, for up to kFew candidates.
__device__ inline Ranked rank_few(Shared& shared, int num_candidates) {
  const int tid = threadIdx.x;
  Ranked result{0, 0};  // candidates differ, and none is 0
  if (tid < num_candidates) {
    result.key = shared.candidates[tid];
  } else {
    shared.candidates[tid] = 0;
  }
  __syncthreads();
  for (int i = 0; i < num_candidates; i += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) result.rank += shared.candidates[i + j] > result.key;
  }
  if (tid >= num_candidates) result.rank = tid;
  return result;
}

// Leader. draw_shortcut for up to kFew candidates: two barriers, then one warp alone. The result is in that
// warp.
template <class T, bool kAdjusted>
__device__ bool draw_from_few(Row<T, kAdjusted>& row, int num_candidates, uint64_t total_mass, int top_k,
                              float top_p, double u, const Result& out) {
  constexpr int kPerLane = kFew / kWarpSize;
  Shared& shared = row.shared;
  uint64_t* sorted = shared.candidates + kFew;
  uint64_t* masses = shared.candidates + 2 * kFew;
  const int tid = threadIdx.x;
  const Ranked ranked = rank_few(shared, num_candidates);
  sorted[ranked.rank] = ranked.key;
  masses[ranked.rank] = ranked.key != 0 ? row.mass_of(logit_of(ranked.key >> 32)) : 0;
  __syncthreads();
  if (tid >= kWarpSize) return true;

  int num_kept = min(num_candidates, top_k > 0 ? top_k : kFirstGuess);
  uint64_t mine[kPerLane], sum = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    mine[i] = tid * kPerLane + i < num_kept ? masses[tid * kPerLane + i] : 0;
    sum += mine[i];
  }
  uint64_t up_to = sum;
#pragma unroll
  for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
    const uint64_t other = __shfl_up_sync(kAllLanes, up_to, lanes);
    if (tid >= lanes) up_to += other;
  }
  uint64_t kept_mass = __shfl_sync(kAllLanes, up_to, kWarpSize - 1);
  if (top_p < 1) {
    const uint64_t limit = mass_limit(top_p, top_k > 0 ? kept_mass : total_mass);
    const Crossing last = find_among_few(mine, up_to - sum, limit);
    if (last.place == kFew) return false;  // the nucleus is wider than the guess
    kept_mass = last.up_to;
  }
  const int found = find_among_few(mine, up_to - sum, draw_target(u, kept_mass)).place;
  if (tid == 0) out.write(id_of(sorted[found]));
  return true;
}

// Leader. Draws from the gathered candidates, to out; false when they do not decide. The result is in the
// first warp.
template <class T, bool kAdjusted>
__device__ bool draw_shortcut(Row<T, kAdjusted>& row, uint64_t total_mass, int top_k, float top_p, double u,
                              const Result& out) {
  Shared& shared = row.shared;
  if (shared.num_candidates > kMaxCandidates) return false;
  const int num_candidates = static_cast<int>(shared.num_candidates);
  if (num_candidates <= kFew) return draw_from_few(row, num_candidates, total_mass, top_k, top_p, u, out);
  sort_candidates(shared.candidates, num_candidates);
  const auto mass = [&](int i) { return row.mass_of(logit_of(shared.candidates[i] >> 32)); };
  int num_kept = min(num_candidates, top_k > 0 ? top_k : kFirstGuess);
  if (top_p < 1) {
    const uint64_t total = top_k > 0 ? row.sum_first(num_kept, mass) : total_mass;
    const int last = row.find_crossing(num_kept, mass_limit(top_p, total), mass);
    if (last == num_kept) return false;
    num_kept = last + 1;
  }
  const int found = row.find_crossing(num_kept, draw_target(u, row.sum_first(num_kept, mass)), mass);
  if (threadIdx.x == 0) out.write(id_of(shared.candidates[found]));
  return true;
}

// Cluster. Draws to out, or returns false. cutoff: at least top_k tokens, or kFirstGuess without top_k, reach
// it, or all there are. total_mass: of the row, without top_k.
template <class T, bool kAdjusted>
__device__ bool try_shortcut(Row<T, kAdjusted>& row, float thread_max, float cutoff, uint64_t total_mass,
                             int top_k, float top_p, double u, const Result& out) {
  const cg::cluster_group cluster = cg::this_cluster();
  Shared& shared = row.shared;
  gather_from(row, thread_max, cutoff);
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
