// The one pass that every row takes: the largest logit, and the sum of the weights 2^((logit - max) * scale).
//
// Each warp scans its segment, with the maximum so far as reference, and tells every block of the cluster
// what it found. Sums are float32 in an order that the vocabulary alone decides, and roundings that could be
// fused are written out, so that no two ways through the code differ.
#pragma once

#include "view.cuh"

namespace quire::cuda::sampling {

// What a thread knows of the ids it looked at.
struct Scan {
  float largest = minus_inf();  // NaN when there was one
  int place = 0;                // in the slice: where the vector begins that has it first
  float sum = 0;                // of 2^((logit - reference) * scale)
  float reference = -kLargestFloat;
};

// What a warp tells of its segment.
struct alignas(16) Finding {
  uint32_t key;  // of the largest logit; above kInfKey: there is a NaN
  int32_t id;    // the lowest that has it, if it was asked for
  float sum;     // relative to the largest logit, -kLargestFloat at least
  float reference;
};

template <bool kWithSum, int kSize>
__device__ inline void scan_values(const float (&values)[kSize], int i, float scale, Scan& scan) {
  float largest = values[0];
#pragma unroll
  for (int k = 1; k < kSize; ++k) largest = max_or_nan(largest, values[k]);
  if (largest > scan.largest) scan.place = i;
  scan.largest = max_or_nan(scan.largest, largest);
  if (kWithSum) {
    const float reference = fmaxf(scan.reference, largest);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kSize; ++k) sum += exp2_fast((values[k] - reference) * scale);
    scan.sum = __fmaf_rn(scan.sum, exp2_fast((scan.reference - reference) * scale), sum);
    scan.reference = reference;
  }
}

// This thread's part of its warp's segment, whatever is to be adjusted. place is that of the logit itself, in
// threads that have their warp's largest.
template <class T, bool kAdjusted>
__device__ Scan scan_edited(const RowView<T, kAdjusted>& row, float scale) {
  Scan scan;
  row.template for_each_vector<false>(
      row.segment(), [&](const auto& values, int i) { scan_values<true>(values, i, scale, scan); });
  bool is_wanted = scan.largest > minus_inf();
  if constexpr (kAdjusted) {
    const uint32_t key = key_of(scan.largest);
    is_wanted &= key == __reduce_max_sync(kAllLanes, key);
  }
  if (is_wanted) {
    while (row.logit(scan.place) != scan.largest) ++scan.place;
  }
  return scan;
}

// For a plain segment, whose first vectors are in vecs, or on their way.
template <bool kWithSum, class T, bool kAdjusted>
__device__ Scan scan_plain(const RowView<T, kAdjusted>& row, const Segment& segment,
                           typename RowView<T, kAdjusted>::Vector (&vecs)[kBatch], float scale) {
  constexpr int kSize = RowView<T, kAdjusted>::kSize, kStep = RowView<T, kAdjusted>::kStep;
  const int lane = threadIdx.x % kWarpSize;
  Scan scan;
  int i = segment.first + lane * kSize;
#pragma unroll 1
  while (true) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      float values[kSize];
      row.unpack(vecs[j], i + j * kStep, segment.end, values);
      scan_values<kWithSum>(values, i + j * kStep, scale, scan);
    }
    i += kBatch * kStep;
    if (i - lane * kSize >= segment.end) return scan;
    row.load_batch(i, segment.end, vecs);
  }
}

// The place of the logit itself, after scan_plain.
template <class T, bool kAdjusted>
__device__ int find_in_vector(const RowView<T, kAdjusted>& row, const Scan& scan) {
  constexpr int kSize = RowView<T, kAdjusted>::kSize;
  float values[kSize];
  row.unpack(load_vec<T, kSize>(row.logits + scan.place), scan.place, row.size, values);
  int first = kSize - 1;
#pragma unroll
  for (int k = kSize - 1; k >= 0; --k) {
    if (values[k] == scan.largest) first = k;
  }
  return scan.place + first;
}

// What the threads of a warp found. Without the id.
__device__ inline Finding join(const Scan& scan, float scale) {
  Finding finding;
  finding.key = __reduce_max_sync(kAllLanes, key_of(scan.largest));
  finding.id = 0;
  finding.reference = fmaxf(logit_of(finding.key), -kLargestFloat);
  finding.sum =
      warp_reduce(__fmul_rn(scan.sum, exp2_fast((scan.reference - finding.reference) * scale)), Sum());
  return finding;
}

// To findings[] of one block of the cluster. A barrier of the cluster follows before they are read.
__device__ inline void tell(Finding (&findings)[kNumSegments], const Finding& finding, int rank) {
  const cg::cluster_group cluster = cg::this_cluster();
  const int warp = threadIdx.x / kWarpSize;
  *cluster.map_shared_rank(&findings[cluster.block_rank() * kNumWarps + warp], rank) = finding;
}

// Gives it to all blocks.
__device__ inline void tell(Finding (&findings)[kNumSegments], const Finding& finding) {
  const int lane = threadIdx.x % kWarpSize;
  if (lane < kClusterSize) tell(findings, finding, lane);
  __syncwarp();
}

// The largest of the row's keys, in all threads of the warp.
__device__ inline uint32_t largest_key(const Finding (&findings)[kNumSegments]) {
  const int lane = threadIdx.x % kWarpSize;
  static_assert(kNumSegments == 2 * kWarpSize);
  return __reduce_max_sync(kAllLanes, max(findings[lane].key, findings[lane + kWarpSize].key));
}

// The lowest id that has this key.
__device__ inline int32_t first_id(const Finding (&findings)[kNumSegments], uint32_t key) {
  int id = INT32_MAX;
  for (int i = threadIdx.x % kWarpSize; i < kNumSegments; i += kWarpSize) {
    if (findings[i].key == key) id = min(id, findings[i].id);
  }
  return __reduce_min_sync(kAllLanes, id);
}

// A segment's sum relative to the row's largest logit.
__device__ inline double weight_of(const Finding& finding, float max, float scale) {
  return __dmul_rn(finding.sum, exp2_fast((finding.reference - max) * scale));
}

// Sums over the segments up to those of this lane, 2 * lane and 2 * lane + 1; the last lane's is the row's.
__device__ inline double scan_weights(const Finding (&findings)[kNumSegments], float max, float scale) {
  const int lane = threadIdx.x % kWarpSize;
  double up_to = weight_of(findings[2 * lane], max, scale) + weight_of(findings[2 * lane + 1], max, scale);
#pragma unroll
  for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
    const double other = __shfl_up_sync(kAllLanes, up_to, lanes);
    if (lane >= lanes) up_to += other;
  }
  return up_to;
}

// Warp. The id in this vector per lane, from logits[i] on, at which the running sum of the weights exceeds
// rest; the last one that weighs anything when none does; -1 when none weighs anything.
template <class T, bool kAdjusted>
__device__ int pick_in_vectors(const RowView<T, kAdjusted>& row, int i, int end, double rest, float reference,
                               float scale) {
  constexpr int kSize = RowView<T, kAdjusted>::kSize;
  const int lane = threadIdx.x % kWarpSize;
  typename RowView<T, kAdjusted>::Vector vec;
  typename RowView<T, kAdjusted>::Counts counts;
  row.load(i, end, vec, counts);
  float values[kSize];
  row.adjustment(vec, counts, i, end, values);
  double mine = 0;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    values[k] = exp2_fast((values[k] - reference) * scale);
    mine += values[k];
  }
  double up_to = mine;
#pragma unroll
  for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
    const double other = __shfl_up_sync(kAllLanes, up_to, lanes);
    if (lane >= lanes) up_to += other;
  }
  const unsigned weighing = __ballot_sync(kAllLanes, mine > 0);
  if (weighing == 0) return -1;
  const unsigned past = __ballot_sync(kAllLanes, mine > 0 && up_to > rest);
  const int chosen = past != 0 ? __ffs(static_cast<int>(past)) - 1 : 31 - __clz(static_cast<int>(weighing));
  double running = __shfl_up_sync(kAllLanes, up_to, 1);
  if (lane == 0) running = 0;
  int found = -1;
  bool is_past = false;
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (values[k] > 0 && !is_past) found = i + k;
    running += values[k];
    is_past |= values[k] > 0 && running > rest;
  }
  return __shfl_sync(kAllLanes, found, chosen) + row.begin;
}

// Warp. The id of a segment at which the running sum of the weights relative to reference exceeds rest. One
// of its weights is above 0.
template <class T, bool kAdjusted>
__device__ int pick_in_segment(const RowView<T, kAdjusted>& row, const Segment& segment, double rest,
                               float reference, float scale) {
  constexpr int kSize = RowView<T, kAdjusted>::kSize, kStep = RowView<T, kAdjusted>::kStep;
  const int begin = threadIdx.x % kWarpSize * kSize;
  int last = segment.first;  // of the last vectors that weigh anything: rounding may leave a little over
  bool is_found = false;
  const auto sum_of = [&](const float (&values)[kSize]) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kSize; ++k) sum += exp2_fast((values[k] - reference) * scale);
    return sum;
  };
  const auto consider = [&](int first, float sum) {
    if (is_found || sum == 0) return;
    last = first;
    is_found = rest < sum;
    if (!is_found) rest -= sum;
  };
  if (row.is_plain(segment)) {
#pragma unroll 1
    for (int first = segment.first; first < segment.end && !is_found; first += 2 * kBatch * kStep) {
      typename RowView<T, kAdjusted>::Vector vecs[2 * kBatch];
      row.load_batch(first + begin, segment.end, vecs);
      float sums[2 * kBatch];
#pragma unroll
      for (int j = 0; j < 2 * kBatch; ++j) {
        float values[kSize];
        row.unpack(vecs[j], first + begin + j * kStep, segment.end, values);
        sums[j] = sum_of(values);
      }
#pragma unroll
      for (int j = 0; j < 2 * kBatch; ++j) sums[j] = warp_reduce(sums[j], Sum());
#pragma unroll
      for (int j = 0; j < 2 * kBatch; ++j) consider(first + j * kStep, sums[j]);
    }
  } else {
    row.template for_each_vector<false>(
        segment, [&](const auto& values, int i) { consider(i - begin, warp_reduce(sum_of(values), Sum())); });
  }
  return pick_in_vectors(row, last + begin, segment.end, is_found ? rest : 1e300, reference, scale);
}

}  // namespace quire::cuda::sampling
