// The sampler's kernel: one row of logits per cluster.
#pragma once

#include <utility>

#include "bins.cuh"
#include "bisect.cuh"
#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "philox.cuh"
#include "quire/cuda/sampling.h"
#include "row.cuh"
#include "shortcut.cuh"

namespace quire::cuda::sampling {

// The build for calls with penalties, min_p or biases: sample_adjusted.cu.
void launch_adjusted(const SampleParams& params, cudaStream_t stream);

namespace {

// Words of a bit per id of a block.
__host__ __device__ constexpr int num_bit_words(int vocab_size) { return (slice_size(vocab_size) + 31) / 32; }

// Bits of this block's ids that may not be sampled, in memory; null when the row has no mask.
template <class T, bool kAdjusted>
__device__ const uint32_t* build_mask(const SampleParams& p, int row_idx, const RowView<T, kAdjusted>& row,
                                      uint32_t* memory) {
  const int mask_row = p.mask_rows != nullptr ? p.mask_rows[row_idx] : -1;
  if (mask_row < 0) return nullptr;
  static_assert(slice_size(1) % 32 == 0, "a block's ids begin with a word");
  const uint32_t* allowed =
      p.token_masks + mask_row * static_cast<int64_t>((p.vocab_size + 31) / 32) + row.begin / 32;
  for (int i = threadIdx.x; i < (row.size + 31) / 32; i += kThreads) memory[i] = ~allowed[i];
  __syncthreads();
  return memory;
}

// Bits of this block's ids that have a bias, in the memory behind the mask's. For rows that have biases.
template <class T, bool kAdjusted>
__device__ void build_biased(const SampleParams& p, int row_idx, const RowView<T, kAdjusted>& row,
                             uint32_t* memory) {
  for (int i = threadIdx.x; i < (row.size + 31) / 32; i += kThreads) memory[i] = 0;
  __syncthreads();
  for (int i = p.bias_offsets[row_idx] + threadIdx.x; i < p.bias_offsets[row_idx + 1]; i += kThreads) {
    const int64_t place = static_cast<int64_t>(p.bias_ids[i]) - row.begin;
    if (place >= 0 && place < row.size) atomicOr(&memory[place / 32], 1u << (place % 32));
  }
  __syncthreads();
}

// The memory behind Shared: num_bit_words each for the mask and for the ids with a bias, where the call has
// them.
__device__ inline uint32_t* bits_of(Shared& shared) { return reinterpret_cast<uint32_t*>(&shared + 1); }

// The row with everything that it asks for. Its bits are there.
template <class T, bool kAdjusted>
__device__ Row<T, kAdjusted> make_row(const SampleParams& p, int row_idx, Shared& shared,
                                      const uint32_t* mask) {
  Row<T, kAdjusted> row(shared, static_cast<const T*>(p.logits) + row_idx * p.stride_logits, p.vocab_size);
  row.set_temperature(p.temperature[row_idx]);
  row.adjustments.mask = mask;
  if (kAdjusted && has_penalties(p, row_idx)) {
    row.adjustments.counts = counts_of(p, row_idx) + row.begin;
    row.adjustments.repetition = p.repetition_penalty[row_idx];
    row.adjustments.presence = p.presence_penalty[row_idx];
    row.adjustments.frequency = p.frequency_penalty[row_idx];
  }
  if (kAdjusted && has_biases(p, row_idx)) {
    const int first = p.bias_offsets[row_idx];
    row.adjustments.biased = bits_of(shared) + num_bit_words(p.vocab_size);
    row.adjustments.bias_ids = p.bias_ids + first;
    row.adjustments.biases = p.biases + first;
    row.adjustments.num_biases = p.bias_offsets[row_idx + 1] - first;
  }
  return row;
}

// Warp. The segment that the draw falls into, in proportion to the weights that the findings sum up. rest:
// the draw less the segments before.
__device__ inline int choose_segment(const Finding (&findings)[kNumSegments], double u, float max,
                                     float scale, double& rest) {
  const int lane = threadIdx.x % kWarpSize;
  const double up_to = scan_weights(findings, max, scale);
  const double target = u * __shfl_sync(kAllLanes, up_to, kWarpSize - 1);
  double before = __shfl_up_sync(kAllLanes, up_to, 1);
  if (lane == 0) before = 0;
  const unsigned weighing = __ballot_sync(kAllLanes, up_to > before);
  const unsigned past = __ballot_sync(kAllLanes, up_to > before && up_to > target);
  const int chosen = past != 0 ? __ffs(static_cast<int>(past)) - 1 : 31 - __clz(static_cast<int>(weighing));
  const double first = weight_of(findings[2 * lane], max, scale);
  const bool is_second = target - before >= first && weight_of(findings[2 * lane + 1], max, scale) > 0;
  rest = __shfl_sync(kAllLanes, target - before - (is_second ? first : 0), chosen);
  return __shfl_sync(kAllLanes, 2 * lane + is_second, chosen);
}

// Cluster. Draws with top_k or top_p where the shortcut does not decide.
template <class T, bool kAdjusted>
__device__ void draw_from_bins(Row<T, kAdjusted>& row, int top_k, float top_p, double u, const Result& out) {
  const cg::cluster_group cluster = cg::this_cluster();
  Shared& shared = row.shared;
  build_histogram(row, top_k == 0);
  if (cluster.block_rank() == 0) {
    const Plan plan = make_plan(row, top_k, top_p);
    if (threadIdx.x < kClusterSize) cluster.map_shared_rank(&shared, threadIdx.x)->plan = plan;
    if (threadIdx.x == 0) shared.num_candidates = 0;
  }
  cluster.sync();
  const Plan plan = shared.plan;
  if (plan.first_bin < 0) {
    draw_by_bisection(row, plan, top_k, top_p, u, out);
    return;
  }
  gather_candidates(row, plan.first_bin, plan.last_bin);
  if (cluster.block_rank() == 0) draw_from_candidates(row, plan, top_k, top_p, u, out);
  cluster.sync();
  if (!shared.walk_ids) return;
  const auto mass = [&](float logit) {
    return row.bin_of(logit) < plan.last_bin ? row.mass_of(logit) : uint64_t{0};
  };
  const ClusterSum sums = row.sum_ids(mass);
  row.write_crossing_id(sums, shared.walk_target, mass, out);
}

// The two functions below are calls, so that what they need costs the usual row no registers. Each kernel has
// its own, which may have as many registers as the kernel.

// scan_edited of any row, whose bits of ids with a bias are set first. Called by all threads of a block.
template <class T, int kBlocksPerSm, bool kAdjusted>
__device__ __noinline__ Scan scan_unusual(const SampleParams& p, int row_idx, Shared& shared,
                                          const uint32_t* mask) {
  const Row<T, kAdjusted> row = make_row<T, kAdjusted>(p, row_idx, shared, mask);
  if (kAdjusted && has_biases(p, row_idx)) {
    build_biased(p, row_idx, row, bits_of(shared) + num_bit_words(p.vocab_size));
  }
  return scan_edited(row, row.scale);
}

// Cluster. Draws from any row whose findings and maxima all blocks know. max: of the row; thread_max: the
// largest logit that this thread saw.
template <class T, int kBlocksPerSm, bool kAdjusted>
__device__ __noinline__ void draw_unusual(const SampleParams& p, int row_idx, Shared& shared,
                                          const uint32_t* mask, float max, float thread_max) {
  const cg::cluster_group cluster = cg::this_cluster();
  Row<T, kAdjusted> row = make_row<T, kAdjusted>(p, row_idx, shared, mask);
  row.max = max;
  int top_k = p.top_k[row_idx];
  if (top_k < 0 || top_k >= p.vocab_size) top_k = 0;
  const float top_p = p.top_p[row_idx] < 1 ? p.top_p[row_idx] : 1.0f;
  const float min_p = !kAdjusted || p.min_p == nullptr ? 0.0f : p.min_p[row_idx];
  const double u = uniform(p.seed[row_idx], p.output_idx[row_idx]);
  const Result out{p, row_idx};
  int pass = 0;
  if (min_p > 0) {
    row.adjustments.floor =
        min_p < 1 ? static_cast<float>(max + p.temperature[row_idx] * log(static_cast<double>(min_p))) : max;
    if (top_k == 0) {  // the sums again, without what min_p puts out
      pass = 1;
      tell(shared.findings[1], join(scan_edited(row, row.scale), row.scale));
      cluster.sync();
    }
  }
  const auto& findings = shared.findings[pass];
  if (top_k == 0 && top_p >= 1) {
    double rest;
    const int warp = threadIdx.x / kWarpSize;
    const int segment = choose_segment(findings, u, max, row.scale, rest);
    if (segment != static_cast<int>(cluster.block_rank()) * kNumWarps + warp) return;
    const int id = pick_in_segment(row, row.segment(), rest, max, row.scale);
    if (threadIdx.x % kWarpSize == 0) out.write(id);
    return;
  }
  if (top_k <= kMaxShortcut) {
    const float cutoff = fmaxf(bound_of(shared, top_k > 0 ? top_k : kFirstGuess), row.adjustments.floor);
    uint64_t total_mass = 0;
    if (top_k == 0) {
      const double sum = __shfl_sync(kAllLanes, scan_weights(findings, max, row.scale), kWarpSize - 1);
      total_mass = static_cast<uint64_t>(sum * kUnit);
    }
    if (try_shortcut(row, thread_max, cutoff, total_mass, top_k, top_p, u, out)) return;
  }
  draw_from_bins(row, top_k, top_p, u, out);
}

// Grid [rows * kClusterSize], a cluster per row, block kThreads. Shared memory: Shared, then bits_of() it.
//
// A block may leave once no other block reads or writes its shared memory: every access to another block's is
// followed by a barrier of the cluster.
template <class T, int kBlocksPerSm, bool kAdjusted>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    sample_kernel(const __grid_constant__ SampleParams p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const cg::cluster_group cluster = cg::this_cluster();
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  launch_dependents();
  if (threadIdx.x == 0) shared.num_candidates = 0;
  auto all_have_started = cluster.barrier_arrive();
  wait_for_dependencies();

  const int row_idx = blockIdx.x / kClusterSize, lane = threadIdx.x % kWarpSize;
  const T* logits = static_cast<const T*>(p.logits) + row_idx * p.stride_logits;
  RowView<T, kAdjusted> row(logits, p.vocab_size, static_cast<int>(cluster.block_rank()));
  const Segment segment = row.segment();
  typename RowView<T, kAdjusted>::Vector vecs[kBatch];
  const bool is_whole = row.is_whole(segment);
  if (is_whole) row.load_batch(segment.first + lane * RowView<T, kAdjusted>::kSize, segment.end, vecs);

  // While the logits are on their way.
  const float temperature = p.temperature[row_idx];
  const bool is_greedy = temperature == 0;
  const int top_k = p.top_k[row_idx];
  const bool has_top_k = top_k > 0 && top_k < p.vocab_size;
  const bool has_set = !is_greedy && (has_top_k || p.top_p[row_idx] < 1);
  // No row of the plain build has penalties; told so, the compiler spills more.
  const bool is_edited = has_penalties(p, row_idx) || (kAdjusted && has_biases(p, row_idx));
  const float scale = scale_of(temperature);
  row.adjustments.mask = build_mask(p, row_idx, row, bits_of(shared));
  // The leader's first warp finishes a usual row alone: the others make room for the next row's.
  const bool is_usual = is_greedy || !(has_set || is_edited || row.adjustments.mask != nullptr ||
                                       (kAdjusted && p.min_p != nullptr && p.min_p[row_idx] > 0));

  Scan scan;
  if (!is_whole || is_edited) {
    scan = scan_unusual<T, kBlocksPerSm, kAdjusted>(p, row_idx, shared, row.adjustments.mask);
  } else if (!is_greedy && !has_top_k) {
    scan = scan_plain<true>(row, segment, vecs, scale);
  } else {
    scan = scan_plain<false>(row, segment, vecs, scale);
  }
  Finding finding = join(scan, scale);
  if (is_greedy && finding.key > kMinusInfKey && finding.key < kInfKey) {
    int id = INT32_MAX;
    if (key_of(scan.largest) == finding.key) {
      id = row.begin + (!is_whole || is_edited ? scan.place : find_in_vector(row, scan));
    }
    finding.id = __reduce_min_sync(kAllLanes, id);
  }
  // Before the first write to another block's memory, which must exist.
  cluster.barrier_wait(std::move(all_have_started));
  if (is_usual) {
    if (lane == 0) tell(shared.findings[0], finding, 0);
    __syncwarp();
    auto all_have_told = cluster.barrier_arrive();
    if (cluster.block_rank() > 0 || threadIdx.x >= kWarpSize) return;
    cluster.barrier_wait(std::move(all_have_told));
  } else {
    tell(shared.findings[0], finding);
    if (has_set) tell_maxima(shared, scan.largest);
    cluster.sync();
  }

  const Finding(&findings)[kNumSegments] = shared.findings[0];
  const uint32_t key = largest_key(findings);
  if (key <= kMinusInfKey || key >= kInfKey || !(temperature >= 0)) {
    if (cluster.block_rank() == 0 && threadIdx.x == 0) Result{p, row_idx}.write(-1);
    return;
  }
  const float max = logit_of(key);
  if (!is_usual) {
    draw_unusual<T, kBlocksPerSm, kAdjusted>(p, row_idx, shared, row.adjustments.mask, max, scan.largest);
    return;
  }
  int id;
  if (is_greedy) {
    id = first_id(findings, key);
  } else {
    double rest;
    const double u = uniform(p.seed[row_idx], p.output_idx[row_idx]);
    const int chosen = choose_segment(findings, u, max, scale, rest);
    const RowView<T, kAdjusted> view(logits, p.vocab_size, chosen / kNumWarps);
    id = pick_in_segment(view, view.segment(chosen % kNumWarps), rest, max, scale);
  }
  if (lane == 0) Result{p, row_idx}.write(id);
}

// Shared memory of a block.
inline int shared_bytes(const SampleParams& p) {
  const int num_bit_bytes = num_bit_words(p.vocab_size) * static_cast<int>(sizeof(uint32_t));
  int num_bytes = sizeof(Shared);
  if (p.mask_rows != nullptr || p.bias_offsets != nullptr) num_bytes += num_bit_bytes;
  return p.bias_offsets != nullptr ? num_bytes + num_bit_bytes : num_bytes;
}

inline LaunchConfig launch_config(const SampleParams& p, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = p.num_rows * kClusterSize;
  config.block = kThreads;
  config.shared_bytes = shared_bytes(p);
  config.cluster = kClusterSize;
  config.overlaps = true;
  config.stream = stream;
  return config;
}

}  // namespace
}  // namespace quire::cuda::sampling
