#include <utility>

#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "quire/cuda/sampling.h"
#include "shortcut.cuh"

namespace quire::cuda {
namespace sampling {
namespace {

constexpr float kLog2e = 1.44269504f;
static_assert(kMaxLogprobs <= kWarpSize);

__device__ inline uint64_t largest_in_warp(uint64_t key) {
  const uint32_t high = __reduce_max_sync(kAllLanes, static_cast<uint32_t>(key >> 32));
  const uint32_t low = __reduce_max_sync(
      kAllLanes, static_cast<uint32_t>(key >> 32) == high ? static_cast<uint32_t>(key) : 0u);
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Leader. The n best tokens, among those of other threads: for rows of which too much was gathered, which are
// flat or have many ties. Slower, and without a limit.
template <class T>
__device__ Ranked rank_all(const LogprobsParams& p, Shared& shared, const T* logits, int n) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  uint64_t kept = 0;  // the n best that this warp has seen, one per lane
  for (int rank = 0; rank < kClusterSize; ++rank) {
    const RowView<T> row(logits, p.vocab_size, rank);
    const auto best_behind = [&](uint64_t before) {  // of the ids that this thread looks at
      uint64_t best = 0;
      row.for_each_vector([&](const auto& values, int i) {
#pragma unroll
        for (const float value : values) {
          const uint64_t key = value > minus_inf() ? rank_key(value, row.begin + i) : 0;
          if (key < before && key > best) best = key;
          ++i;
        }
      });
      return best;
    };
    uint64_t mine = best_behind(UINT64_MAX), merged = 0;
    for (int i = 0; i < n; ++i) {
      const uint64_t largest = largest_in_warp(mine > kept ? mine : kept);
      if (largest == 0) break;
      if (lane == i) merged = largest;
      if (kept == largest) kept = 0;
      if (mine == largest) mine = best_behind(largest);
    }
    kept = merged;
  }
  __syncthreads();
  shared.candidates[warp * kWarpSize + lane] = kept;
  __syncthreads();
  return rank_few(shared, kThreads);
}

// Leader. The n best tokens in rank order, 0 behind the last one.
template <class T>
__device__ const uint64_t* sort_best(const LogprobsParams& p, Shared& shared, const T* logits, int n) {
  const uint32_t num_candidates = shared.num_candidates;
  if (num_candidates > kFew && num_candidates <= kMaxCandidates) {
    sort_candidates(shared.candidates, static_cast<int>(num_candidates));
    return shared.candidates;
  }
  uint64_t* sorted = shared.candidates + kFew;
  const Ranked ranked = num_candidates <= kFew ? rank_few(shared, static_cast<int>(num_candidates))
                                               : rank_all(p, shared, logits, n);
  if (threadIdx.x < kWarpSize) sorted[threadIdx.x] = 0;
  __syncthreads();
  if (ranked.key != 0) sorted[ranked.rank] = ranked.key;
  __syncthreads();
  return sorted;
}

// Grid [rows * kClusterSize], a cluster per row, block kThreads. The first block of a cluster, the leader,
// writes the row's results.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) logprobs_kernel(const __grid_constant__ LogprobsParams p) {
  __shared__ __align__(16) unsigned char memory[sizeof(Shared)];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const cg::cluster_group cluster = cg::this_cluster();
  launch_dependents();
  wait_for_dependencies();
  const int row_idx = blockIdx.x / kClusterSize, n = min(p.num_logprobs[row_idx], kMaxLogprobs);
  if (n <= 0) return;
  if (threadIdx.x == 0) shared.num_candidates = 0;
  auto all_have_started = cluster.barrier_arrive();

  const T* logits = static_cast<const T*>(p.logits) + row_idx * p.stride_logits;
  Row<T> row(shared, logits, p.vocab_size);
  const int lane = threadIdx.x % kWarpSize;
  const int token_id = p.token_ids[row_idx];
  const bool has_token = token_id >= 0 && token_id < p.vocab_size;
  const float token_logit = has_token ? to_float(logits[token_id]) : minus_inf();
  Scan scan;
  int num_before = 0;  // tokens that rank before the sampled one
  row.for_each_vector([&](const auto& values, int i) {
    scan_values<true>(values, i, kLog2e, scan);
#pragma unroll
    for (const float value : values) {
      num_before += value > token_logit || (value == token_logit && row.begin + i < token_id);
      ++i;
    }
  });
  Finding finding = join(scan, kLog2e);
  finding.id = __reduce_add_sync(kAllLanes, num_before);
  cluster.barrier_wait(std::move(all_have_started));
  tell(shared.findings[0], finding);
  tell_maxima(shared, scan.largest);
  cluster.sync();

  const uint32_t key = largest_key(shared.findings[0]);
  const bool is_valid = key > kMinusInfKey && key < kInfKey;
  if (is_valid) gather_from(row, scan.largest, bound_of(shared, n));
  cluster.sync();
  if (cluster.block_rank() > 0) return;

  const uint64_t* best = sort_best(p, shared, logits, n);
  if (threadIdx.x >= kWarpSize) return;
  const Finding(&findings)[kNumSegments] = shared.findings[0];
  const float max = logit_of(key), nan = __int_as_float(0x7fc00000);
  const double log_sum = log(__shfl_sync(kAllLanes, scan_weights(findings, max, kLog2e), kWarpSize - 1));
  const auto logprob = [&](float logit) { return static_cast<float>(logit - max - log_sum); };
  const int rank = 1 + __reduce_add_sync(kAllLanes, findings[lane].id + findings[lane + kWarpSize].id);
  if (lane == 0) {
    p.token_logprobs[row_idx] = is_valid && has_token ? logprob(token_logit) : nan;
    p.token_ranks[row_idx] = is_valid && has_token ? rank : 0;
  }
  if (lane >= n) return;
  const int64_t place = static_cast<int64_t>(row_idx) * kMaxLogprobs + lane;
  const bool is_there = best[lane] != 0;
  p.top_ids[place] = is_there ? id_of(best[lane]) : -1;
  p.top_logprobs[place] = is_there ? logprob(logit_of(best[lane] >> 32)) : is_valid ? minus_inf() : nan;
}

}  // namespace
}  // namespace sampling

void launch_logprobs(const LogprobsParams& p, cudaStream_t stream) {
  using namespace sampling;
  check_range("num_rows", p.num_rows, 0, INT32_MAX / kClusterSize);
  check_range("vocab_size", p.vocab_size, 1, kMaxVocabSize);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    LaunchConfig config;
    config.grid = p.num_rows * kClusterSize;
    config.block = kThreads;
    config.cluster = kClusterSize;
    config.overlaps = true;
    config.stream = stream;
    launch("logprobs", logprobs_kernel<T>, config, p);
  });
}

}  // namespace quire::cuda
