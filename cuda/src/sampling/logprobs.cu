#include <utility>

#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "quire/cuda/logprobs.h"
#include "scan.cuh"

namespace quire::cuda {
namespace sampling {
namespace {

constexpr float kLog2e = 1.44269504f;

struct Lists {
  Finding findings[kNumSegments];  // id: how many tokens of the segment rank before the sampled one
  uint64_t best[kNumSegments][kMaxLogprobs];  // rank keys, the leader's; 0 behind the segment's last token
};

__device__ inline uint64_t largest_in_warp(uint64_t key) {
  const uint32_t high = __reduce_max_sync(kAllLanes, static_cast<uint32_t>(key >> 32));
  const uint32_t low = __reduce_max_sync(
      kAllLanes, static_cast<uint32_t>(key >> 32) == high ? static_cast<uint32_t>(key) : 0u);
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Warp. The segment's n best, one per lane; 0 when there are fewer. NaN ranks first: the row is not used
// then.
template <class T>
__device__ uint64_t best_of_segment(const RowView<T>& row, const Segment& segment, int n) {
  constexpr int kSize = RowView<T>::kSize;
  const int lane = threadIdx.x % kWarpSize;
  // This thread's best token behind the given one.
  const auto next = [&](uint64_t before) {
    uint64_t best = 0;
#pragma unroll 2
    for (int i = segment.first + lane * kSize; i < segment.end; i += RowView<T>::kStep) {
      const auto vec = row.load(i, segment.end);
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        const float logit = to_float(vec[k]);
        const uint64_t key = logit > minus_inf() ? rank_key(logit, row.begin + i + k) : 0;
        if (key < before && key > best) best = key;
      }
    }
    return best;
  };
  uint64_t mine = next(UINT64_MAX), kept = 0;
  for (int i = 0; i < n; ++i) {
    const uint64_t best = largest_in_warp(mine);
    if (best == 0) break;
    if (lane == i) kept = best;
    if (mine == best) mine = next(best);
  }
  return kept;
}

// Grid [rows * kClusterSize], a cluster per row, block kThreads. Shared memory: Lists. The first block of a
// cluster, the leader, writes the row's results.
template <class T>
__global__ void __launch_bounds__(kThreads) logprobs_kernel(const __grid_constant__ LogprobsParams p) {
  extern __shared__ __align__(16) unsigned char memory[];
  Lists& lists = *reinterpret_cast<Lists*>(memory);
  const cg::cluster_group cluster = cg::this_cluster();
  launch_dependents();
  wait_for_dependencies();
  const int row_idx = blockIdx.x / kClusterSize, n = min(p.num_logprobs[row_idx], kMaxLogprobs);
  if (n <= 0) return;
  auto all_have_started = cluster.barrier_arrive();

  const T* logits = static_cast<const T*>(p.logits) + row_idx * p.stride_logits;
  const RowView<T> row(logits, p.vocab_size);
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int token_id = p.token_ids[row_idx];
  const bool has_token = token_id >= 0 && token_id < p.vocab_size;
  const float token_logit = has_token ? to_float(logits[token_id]) : minus_inf();

  const Segment segment = row.segment();
  Scan scan;
  int num_before = 0;
  const auto look = [&](const auto& values, int i) {
    scan_values<true>(values, i, kLog2e, scan);
#pragma unroll
    for (int k = 0; k < RowView<T>::kSize; ++k) {
      num_before += values[k] > token_logit || (values[k] == token_logit && row.begin + i + k < token_id);
    }
  };
  if (row.is_plain(segment)) {
    row.template for_each_vector<true>(segment, look);
  } else {
    row.template for_each_vector<false>(segment, look);
  }
  Finding finding = join(row, scan, false, kLog2e);
  finding.id = __reduce_add_sync(kAllLanes, num_before);
  const uint64_t best = best_of_segment(row, segment, n);
  cluster.barrier_wait(std::move(all_have_started));
  tell(lists.findings, finding);
  Lists& leader = *cluster.map_shared_rank(&lists, 0);
  if (lane < n) leader.best[cluster.block_rank() * kNumWarps + warp][lane] = best;
  cluster.sync();
  if (cluster.block_rank() > 0 || warp > 0) return;

  const uint32_t key = largest_key(lists.findings);
  const bool is_valid = key > kMinusInfKey && key < kInfKey;
  const float max = logit_of(key);
  const double log_sum =
      log(__shfl_sync(kAllLanes, scan_weights(lists.findings, max, kLog2e), kWarpSize - 1));
  const auto logprob = [&](float logit) { return static_cast<float>(logit - max - log_sum); };
  const int rank =
      1 + __reduce_add_sync(kAllLanes, lists.findings[lane].id + lists.findings[lane + kWarpSize].id);
  if (lane == 0) {
    p.token_logprobs[row_idx] = is_valid && has_token ? logprob(token_logit) : __int_as_float(0x7fc00000);
    p.token_ranks[row_idx] = is_valid && has_token ? rank : 0;
  }
  int places[2] = {0, 0};  // in the lists of segments lane and lane + kWarpSize
  const auto head = [&](int i) {
    return places[i] < n ? lists.best[lane + i * kWarpSize][places[i]] : uint64_t{0};
  };
  uint64_t kept = 0;
  for (int i = 0; i < n; ++i) {
    const uint64_t first = head(0), second = head(1);
    const uint64_t largest = largest_in_warp(first > second ? first : second);
    if (lane == i) kept = largest;
    places[0] += first == largest;
    places[1] += second == largest;
  }
  if (lane >= n) return;
  const int64_t place = static_cast<int64_t>(row_idx) * kMaxLogprobs + lane;
  const bool is_there = is_valid && kept != 0;
  p.top_ids[place] = is_there ? id_of(kept) : -1;
  p.top_logprobs[place] = is_there   ? logprob(logit_of(kept >> 32))
                          : is_valid ? minus_inf()
                                     : __int_as_float(0x7fc00000);
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
    config.shared_bytes = sizeof(Lists);
    config.cluster = kClusterSize;
    config.overlaps = true;
    config.stream = stream;
    launch("logprobs", logprobs_kernel<T>, config, p);
  });
}

}  // namespace quire::cuda
