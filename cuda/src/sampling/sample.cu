#include <cuda_pipeline.h>

#include <utility>

#include "bins.cuh"
#include "bisect.cuh"
#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "philox.cuh"
#include "quire/cuda/sample.h"
#include "row.cuh"
#include "shortcut.cuh"

namespace quire::cuda {
namespace sampling {
namespace {

constexpr int64_t kMaxSharedBytes = 227 * 1024;

// A multiple of 8, so that the slices of an aligned row are aligned.
__host__ __device__ constexpr int slice_size(int vocab_size) {
  return ((vocab_size + kClusterSize - 1) / kClusterSize + 7) / 8 * 8;
}

// This block's slice to shared memory, masked ids at -inf.
template <class T>
__device__ void load_row(const SampleParams& p, int row_idx, Row<T>& row) {
  constexpr int kSize = kVecSize<T>;
  const T* from = static_cast<const T*>(p.logits) + row_idx * p.stride_logits + row.begin;
  int done = 0;
  if (reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    done = row.size / kSize * kSize;
    // Asynchronous copies: all of the slice is in flight at once, and takes no registers.
    for (int i = threadIdx.x * kSize; i < done; i += kThreads * kSize) {
      __pipeline_memcpy_async(row.logits + i, from + i, 16);
    }
    __pipeline_commit();
  }
  for (int i = done + threadIdx.x; i < row.size; i += kThreads) row.logits[i] = from[i];
  __pipeline_wait_prior(0);
  __syncthreads();
  if (p.mask_offsets == nullptr) return;
  const int mask_begin = p.mask_offsets[row_idx], mask_end = p.mask_offsets[row_idx + 1];
  if (mask_begin == mask_end) return;
  for (int i = mask_begin + threadIdx.x; i < mask_end; i += kThreads) {
    const int64_t place = static_cast<int64_t>(p.mask_ids[i]) - row.begin;
    if (place >= 0 && place < row.size) row.logits[place] = from_float<T>(-__int_as_float(0x7f800000));
  }
  __syncthreads();
}

// Cluster. The row's best token as key << 32 | ~id; 0 when there is a NaN. thread_max becomes the largest
// logit that this thread saw, -inf if it saw none.
template <class T>
__device__ uint64_t find_best(Row<T>& row, float& thread_max) {
  constexpr int kSize = kVecSize<T>;
  const float minus_inf = -__int_as_float(0x7f800000);
  float largest = minus_inf;
  int place = 0;  // of the vector or the element that has it first
  bool has_nan = false;
  row.for_each_seen(
      [&](const Vec<T, kSize>& vec, int i) {
        float vec_max = minus_inf;
#pragma unroll
        for (int j = 0; j < kSize; ++j) {
          const float logit = to_float(vec[j]);
          has_nan |= logit != logit;
          vec_max = fmaxf(vec_max, logit);
        }
        if (vec_max > largest) {
          largest = vec_max;
          place = i;
        }
      },
      [&](float logit, int i) {
        has_nan |= logit != logit;
        if (logit > largest) {
          largest = logit;
          place = i;
        }
      });
  uint64_t best = 0;
  if (largest > minus_inf) {
    while (row.logit(place) != largest) ++place;
    best = (static_cast<uint64_t>(key_of(largest)) << 32) | ~static_cast<uint32_t>(row.begin + place);
  }
  thread_max = largest;
  best = block_reduce(best, Max(), row.shared.scratch);
  has_nan = __syncthreads_or(has_nan) != 0;
  const uint64_t (*told)[2] = row.tell_cluster(best, has_nan);
  for (int rank = 0; rank < kClusterSize; ++rank) {
    best = told[rank][0] > best ? told[rank][0] : best;
    has_nan |= told[rank][1] != 0;
  }
  return has_nan ? 0 : best;
}

// Cluster. Draws from the row, all of it or with top_k and top_p, to out.
template <class T>
__device__ void draw(Row<T>& row, float thread_max, int top_k, float top_p, double u, const Result& out) {
  const cg::cluster_group cluster = cg::this_cluster();
  if (top_k == 0 && top_p >= 1) {
    const auto mass = [&](float logit) { return row.mass_of(logit); };
    const ClusterSum sums = row.sum_ids(mass);
    row.write_crossing_id(sums, draw_target(u, sums.total[0]), mass, out);
    return;
  }

  if (top_k <= kMaxShortcut && try_shortcut(row, thread_max, top_k, top_p, u, out)) return;

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

// Grid [rows * kClusterSize], a cluster per row, block kThreads. Shared memory: Shared, then the slice.
//
// A block may leave once no other block reads or writes its shared memory: every access to another block's is
// followed by a barrier of the cluster.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) sample_kernel(SampleParams p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const cg::cluster_group cluster = cg::this_cluster();
  const int row_idx = blockIdx.x / kClusterSize;
  const int slice = slice_size(p.vocab_size), begin = cluster.block_rank() * slice;
  Row<T> row{*reinterpret_cast<Shared*>(memory),
             reinterpret_cast<T*>(memory + (sizeof(Shared) + 15) / 16 * 16), begin,
             max(0, min(slice, p.vocab_size - begin))};
  launch_dependents();
  auto all_have_started = cluster.barrier_arrive();
  if (cluster.block_rank() == 0) prepare_shortcut(row.shared);
  wait_for_dependencies();
  load_row(p, row_idx, row);
  // Before the first write to another block's memory, which must exist.
  cluster.barrier_wait(std::move(all_have_started));

  const Result out{p.out + row_idx,
                   p.sample_rows != nullptr ? p.last_token_ids + p.sample_rows[row_idx] : nullptr};
  float thread_max;
  const uint64_t best = find_best(row, thread_max);
  row.max = logit_of(best >> 32);
  const float temperature = p.temperature[row_idx];
  const bool is_valid = best >> 32 > kMinusInfKey && row.max < __int_as_float(0x7f800000) && temperature >= 0;
  if (!is_valid || temperature == 0) {
    if (cluster.block_rank() == 0 && threadIdx.x == 0) {
      out.write(is_valid ? static_cast<int32_t>(~static_cast<uint32_t>(best)) : -1);
    }
  } else {
    row.set_temperature(temperature);
    const int top_k = p.top_k[row_idx];
    const float top_p = p.top_p[row_idx];
    draw(row, thread_max, top_k <= 0 || top_k >= p.vocab_size ? 0 : top_k, top_p < 1 ? top_p : 1.0f,
         uniform(p.seed[row_idx], p.output_idx[row_idx]), out);
  }
}

}  // namespace
}  // namespace sampling

void launch_sample(const SampleParams& p, cudaStream_t stream) {
  using namespace sampling;
  check_range("num_rows", p.num_rows, 0, INT32_MAX / kClusterSize);
  const int64_t shared_struct = (sizeof(Shared) + 15) / 16 * 16;
  const int64_t max_slice = (kMaxSharedBytes - shared_struct) / size_of(p.dtype) / 8 * 8;
  check_range("vocab_size", p.vocab_size, 1, max_slice * kClusterSize);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    LaunchConfig config;
    config.grid = p.num_rows * kClusterSize;
    config.block = kThreads;
    config.shared_bytes = shared_struct + slice_size(p.vocab_size) * sizeof(T);
    config.cluster = kClusterSize;
    config.overlaps = true;
    config.stream = stream;
    launch("sample", sample_kernel<T>, config, p);
  });
}

}  // namespace quire::cuda
