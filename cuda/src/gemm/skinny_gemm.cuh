// GEMM of few rows of x, bound by reading W: W's rows are the 64-row operand of wgmma, x's rows its columns.
//
// Grid: clusters of S blocks, one block per SM. A cluster walks tiles of kRows rows of W; of each tile, block
// r of the cluster multiplies the r-th part of k, and the S partial sums are added up in the order of r
// through the cluster's shared memory, each block adding up (and writing) a part of the tile's rows.
//
// Block: 4 warps that multiply, one that loads W, one that loads x. Both loads run ahead through rings of
// their own, across tiles. W's loads do not wait for the kernels in front: the ring is full, and more of W on
// its way into L2, before x is there.
//
// Shared memory: ring of W [stage][2][64 rows][64], ring of x [stage][k / 64 of a stage][kTokens][64],
// partial sums [kExchange][kRows + 4] float, barriers.
#pragma once

#include "common/dependency.cuh"
#include "common/vec.cuh"
#include "copy_engine.cuh"
#include "kernels.h"
#include "wgmma.cuh"

namespace quire::cuda::gemm {

inline constexpr int kMathThreads = 128;
inline constexpr int kThreads = kMathThreads + 64;
inline constexpr int kMaxCluster = 8;

template <int kTokens, int kRows>
struct Shape {
  static constexpr int kBoxBytes = kLoadBytes / 2;
  static constexpr int kBoxesAlongK = kRows == 64 ? 2 : 1;  // of the two boxes of a stage
  static constexpr int kXBoxBytes = kTokens * kBoxColumns * 2;
  static constexpr int kXLoadBytes = kBoxesAlongK * kXBoxBytes;
  static constexpr int kXStages = kTokens == 8 ? 8 / kBoxesAlongK : kXLoadBytes > 8192 ? 2 : 3;
  static constexpr int kExchange = kTokens < 32 ? kTokens : 32;  // columns of x exchanged at a time
  static constexpr int kPartialStride = kRows + 4;  // floats; keeps a fragment's 32 values in distinct banks
  static constexpr int kPartialBytes = kExchange * kPartialStride * 4;
  static constexpr int kAlignBytes = 1024, kBarrierBytes = 256;
  static constexpr int kBudget = 113 * 1024;  // half of an SM
  static constexpr int kFit =
      (kBudget - kAlignBytes - kBarrierBytes - kXStages * kXLoadBytes - kPartialBytes) / kLoadBytes;
  static constexpr int kStages = kFit < 6 ? kFit : 6;
  static constexpr int kSharedBytes =
      kAlignBytes + kStages * kLoadBytes + kXStages * kXLoadBytes + kPartialBytes + kBarrierBytes;
  static_assert(kStages >= 4 && kSharedBytes <= kBudget);
  static_assert((2 * kStages + 2 * kXStages + 2) * 8 <= kBarrierBytes);
  static_assert(kRows == 64 || kRows == 128);
  static_assert(kTokens % 8 == 0);
};

// Shared addresses.
template <int kTokens, int kRows>
struct Shared {
  using S = Shape<kTokens, kRows>;
  uint32_t weights, x, partial, barriers;
  const float* partial_pointer;

  __device__ explicit Shared(unsigned char* base) {
    const uint32_t start = shared_address(base);
    weights = (start + S::kAlignBytes - 1) / S::kAlignBytes * S::kAlignBytes;
    x = weights + S::kStages * kLoadBytes;
    partial = x + S::kXStages * S::kXLoadBytes;
    barriers = partial + S::kPartialBytes;
    partial_pointer = reinterpret_cast<const float*>(base + (partial - start));
  }
  __device__ uint32_t full(int stage) const { return barriers + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return full(S::kStages + stage); }
  __device__ uint32_t x_full(int stage) const { return full(2 * S::kStages + stage); }
  __device__ uint32_t x_empty(int stage) const { return x_full(S::kXStages + stage); }
  __device__ uint32_t ready() const { return x_full(2 * S::kXStages); }  // all partial sums are written
  __device__ uint32_t read() const { return ready() + 8; }               // mine are read by all
};

// A place in a ring, and the parity of its phase.
template <int kStages>
struct RingCursor {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// The loads of a block in order: its part of k of each of its cluster's tiles.
struct Work {
  int32_t first_tile, tile_stride, num_tiles;
  int32_t first_step, num_steps;  // of each tile

  __device__ Work(const KernelArgs& a, uint32_t rank, uint32_t cluster) {
    first_tile = blockIdx.x / cluster;
    tile_stride = gridDim.x / cluster;
    num_tiles = (a.num_tiles - first_tile + tile_stride - 1) / tile_stride;
    first_step = a.num_steps * rank / cluster;
    num_steps = a.num_steps * (rank + 1) / cluster - first_step;
  }
  __device__ int32_t num_loads() const { return num_tiles * num_steps; }
  __device__ int32_t tile(int32_t load) const { return first_tile + load / num_steps * tile_stride; }
  __device__ int32_t step(int32_t load) const { return first_step + load % num_steps; }
};

// Row of W where a tile's box begins, and its first element of k.
template <int kRows>
__device__ inline int2 box_at(const KernelArgs& a, int32_t tile, int32_t step, int box) {
  if (kRows == 64) return make_int2(tile * kBoxRows, (2 * step + box) * kBoxColumns);
  const int32_t row = a.silu_mul ? tile * kBoxRows + box * a.n_out : (2 * tile + box) * kBoxRows;
  return make_int2(row, step * kBoxColumns);
}

template <int kTokens, int kRows>
__device__ void load_weights(const KernelArgs& a, const Work& work, const Shared<kTokens, kRows>& shared) {
  using S = Shape<kTokens, kRows>;
  const int32_t num_loads = work.num_loads();
  const int32_t trigger_at = max(num_loads - a.trigger, 0);
  RingCursor<S::kStages> ring;
  for (int32_t i = 0; i < num_loads; ++i) {
    if (i == trigger_at) launch_dependents();
    if (i == S::kStages) {
      for (int32_t j = i; j < min(i + a.prefetch, num_loads); ++j) {
        for (int box = 0; box < 2; ++box) {
          const int2 at = box_at<kRows>(a, work.tile(j), work.step(j), box);
          prefetch_box(&a.weight, at.y, at.x, CachePolicy::kEvictFirst);
        }
      }
    }
    if (i >= S::kStages) wait_barrier(shared.empty(ring.stage), ring.phase ^ 1);
    arrive_expecting(shared.full(ring.stage), kLoadBytes);
    for (int box = 0; box < 2; ++box) {
      const int2 at = box_at<kRows>(a, work.tile(i), work.step(i), box);
      copy_box(shared.weights + ring.stage * kLoadBytes + box * S::kBoxBytes, &a.weight, at.y, at.x,
               shared.full(ring.stage), CachePolicy::kEvictFirst);
    }
    ring.advance();
  }
  if (trigger_at == num_loads) launch_dependents();
}

// All lanes: with given rows, each lane copies two of them.
template <int kTokens, int kRows>
__device__ void load_x(const KernelArgs& a, const Work& work, const Shared<kTokens, kRows>& shared) {
  using S = Shape<kTokens, kRows>;
  constexpr int kOutside = -1;  // as a row: the copy gives zeros
  const int lane = threadIdx.x % 32;
  int32_t rows[2] = {0, 0};
  if (a.rows != nullptr) {
    for (int i = 0; i < 2; ++i) {
      rows[i] = lane + 32 * i < a.num_rows ? a.rows[lane + 32 * i] : kOutside;
    }
  }
  RingCursor<S::kXStages> ring;
  for (int32_t i = 0; i < work.num_loads(); ++i) {
    if (i >= S::kXStages) wait_barrier(shared.x_empty(ring.stage), ring.phase ^ 1);
    if (lane == 0) arrive_expecting(shared.x_full(ring.stage), S::kXLoadBytes);
    __syncwarp();
    for (int box = 0; box < S::kBoxesAlongK; ++box) {
      const int32_t column = (work.step(i) * S::kBoxesAlongK + box) * kBoxColumns;
      const uint32_t to = shared.x + ring.stage * S::kXLoadBytes + box * S::kXBoxBytes;
      if (a.rows == nullptr) {
        if (lane == 0) copy_box(to, &a.x, column, 0, shared.x_full(ring.stage), CachePolicy::kEvictLast);
      } else {
        for (int j = 0; lane + 32 * j < kTokens; ++j) {
          copy_box(to + (lane + 32 * j) * kBoxColumns * 2, &a.x, column, rows[j], shared.x_full(ring.stage),
                   CachePolicy::kEvictLast);
        }
      }
    }
    ring.advance();
  }
}

__device__ inline void sync_math_warps() { asm volatile("bar.sync 1, %0;" ::"n"(kMathThreads) : "memory"); }

// The cluster's sum of four rows of the tile from `row` on, of one column; in the order of the ranks.
template <int kTokens, int kRows>
__device__ float4 sum_of_cluster(uint32_t partial, uint32_t cluster, int column, int row) {
  const uint32_t at = partial + (column * Shape<kTokens, kRows>::kPartialStride + row) * 4;
  float4 parts[kMaxCluster];
#pragma unroll
  for (uint32_t rank = 0; rank < kMaxCluster; ++rank) {
    if (rank < cluster) parts[rank] = load_in_cluster(address_in_block(at, rank));
  }
  float4 sum = parts[0];
#pragma unroll
  for (uint32_t rank = 1; rank < kMaxCluster; ++rank) {
    if (rank < cluster) {
      sum.x += parts[rank].x;
      sum.y += parts[rank].y;
      sum.z += parts[rank].z;
      sum.w += parts[rank].w;
    }
  }
  return sum;
}

template <class T>
__device__ float4 plus_bias(const KernelArgs& a, float4 sum, int32_t n, int32_t n_end) {
  if (a.bias == nullptr) return sum;
  const T* const bias = static_cast<const T*>(a.bias) + n;
  sum.x += to_float(bias[0]);
  if (n + 1 < n_end) sum.y += to_float(bias[1]);
  if (n + 2 < n_end) sum.z += to_float(bias[2]);
  if (n + 3 < n_end) sum.w += to_float(bias[3]);
  return sum;
}

template <class T>
__device__ T silu_times(float gate, float up) {
  const float g = rounded<T>(gate);
  return from_float<T>(rounded<T>(g / (1.0f + expf(-g))) * rounded<T>(up));
}

// Adds up the cluster's partial sums of columns [first, first + kExchange) and writes them: of each block the
// rank-th part of the tile's rows (with silu_mul, of its gate rows and of its up rows).
template <class T, int kTokens, int kRows>
__device__ void write_out(const KernelArgs& a, uint32_t partial, uint32_t rank, uint32_t cluster,
                          int32_t tile, int first) {
  using S = Shape<kTokens, kRows>;
  const int tile_columns = a.silu_mul ? kRows / 2 : kRows;  // of out
  const int part = tile_columns / cluster, vecs = part / 4;
  for (int i = threadIdx.x; i < vecs * S::kExchange; i += kMathThreads) {
    const int column = i / vecs, row = rank * part + i % vecs * 4;
    const int m = first + column;
    const int32_t n = tile * tile_columns + row;
    if (m >= a.num_rows || n >= a.n_out) continue;
    float4 sum = sum_of_cluster<kTokens, kRows>(partial, cluster, column, row);
    sum = plus_bias<T>(a, sum, n, a.n_out);
    Vec<T, 4> y;
    if (a.silu_mul) {
      float4 up = sum_of_cluster<kTokens, kRows>(partial, cluster, column, row + kRows / 2);
      up = plus_bias<T>(a, up, n + a.n_out, 2 * a.n_out);
      y[0] = silu_times<T>(sum.x, up.x);
      y[1] = silu_times<T>(sum.y, up.y);
      y[2] = silu_times<T>(sum.z, up.z);
      y[3] = silu_times<T>(sum.w, up.w);
    } else {
      y[0] = from_float<T>(sum.x);
      y[1] = from_float<T>(sum.y);
      y[2] = from_float<T>(sum.z);
      y[3] = from_float<T>(sum.w);
    }
    T* const to = static_cast<T*>(a.out) + m * a.stride_out + n;
    if (a.is_wide) {
      store_vec(to, y);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (n + j < a.n_out) to[j] = y[j];
      }
    }
  }
}

template <class T, int kTokens, int kRows>
__device__ void multiply(const KernelArgs& a, const Work& work, const Shared<kTokens, kRows>& shared,
                         uint32_t rank, uint32_t cluster) {
  using S = Shape<kTokens, kRows>;
  constexpr int kAccs = kRows / 64, kAccSize = kTokens / 2;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float* const fragment =
      const_cast<float*>(shared.partial_pointer) + lane % 4 * 2 * S::kPartialStride + warp * 16 + lane / 4;
  RingCursor<S::kStages> ring;
  RingCursor<S::kXStages> x_ring;
  uint32_t exchange_phase = 0;
  bool is_first_exchange = true;
  for (int32_t t = 0; t < work.num_tiles; ++t) {
    float acc[kAccs][kAccSize] = {};
    for (int32_t step = 0; step < work.num_steps; ++step) {
      wait_barrier(shared.full(ring.stage), ring.phase);
      wait_barrier(shared.x_full(x_ring.stage), x_ring.phase);
      const uint32_t w = shared.weights + ring.stage * kLoadBytes;
      const uint32_t x = shared.x + x_ring.stage * S::kXLoadBytes;
      wgmma_fence();
#pragma unroll
      for (int box = 0; box < 2; ++box) {
        const int x_box = kRows == 64 ? box : 0;
#pragma unroll
        for (int k = 0; k < kBoxColumns; k += 16) {
          Wgmma<T, kTokens>::run(acc[kRows == 64 ? 0 : box], operand_at(w + box * S::kBoxBytes + k * 2),
                                 operand_at(x + x_box * S::kXBoxBytes + k * 2));
        }
      }
      wgmma_commit();
      wgmma_wait();
      if (lane == 0) {
        arrive(shared.empty(ring.stage));
        arrive(shared.x_empty(x_ring.stage));
      }
      ring.advance();
      x_ring.advance();
    }
#pragma unroll
    for (int first = 0; first < kTokens; first += S::kExchange) {
      if (!is_first_exchange && cluster > 1) wait_barrier_of_cluster(shared.read(), exchange_phase ^ 1);
#pragma unroll
      for (int i = 0; i < kAccs; ++i) {
#pragma unroll
        for (int c = 0; c < S::kExchange / 8; ++c) {
          const float* const from = acc[i] + (first / 8 + c) * 4;
          float* const to = fragment + c * 8 * S::kPartialStride + i * 64;
          to[0] = from[0];
          to[S::kPartialStride] = from[1];
          to[8] = from[2];
          to[S::kPartialStride + 8] = from[3];
        }
      }
      if (is_first_exchange && cluster > 1) wait_for_cluster();  // every block's barriers are there
      is_first_exchange = false;
      sync_math_warps();  // the block's partial sums
      if (cluster > 1) {
        if (threadIdx.x < cluster) arrive_in_cluster(address_in_block(shared.ready(), threadIdx.x));
        wait_barrier_of_cluster(shared.ready(), exchange_phase);
      }
      const int32_t tile = work.first_tile + t * work.tile_stride;
      write_out<T, kTokens, kRows>(a, shared.partial, rank, cluster, tile, first);
      sync_math_warps();  // all loads of the exchange are done
      if (cluster > 1 && threadIdx.x < cluster)
        arrive_in_cluster(address_in_block(shared.read(), threadIdx.x));
      exchange_phase ^= 1;
    }
  }
  if (cluster > 1)
    wait_barrier_of_cluster(shared.read(), exchange_phase ^ 1);  // shared memory must outlive its readers
}

template <class T, int kTokens, int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    skinny_gemm_kernel(const __grid_constant__ KernelArgs a, uint32_t cluster) {
  using S = Shape<kTokens, kRows>;
  extern __shared__ unsigned char base[];
  const Shared<kTokens, kRows> shared(base);
  const uint32_t rank = rank_in_cluster();
  const Work work(a, rank, cluster);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&a.weight);
    prefetch_tensor_map(&a.x);
    for (int i = 0; i < S::kStages; ++i) {
      init_barrier(shared.full(i), 1);
      init_barrier(shared.empty(i), kMathThreads / 32);
    }
    for (int i = 0; i < S::kXStages; ++i) {
      init_barrier(shared.x_full(i), 1);
      init_barrier(shared.x_empty(i), kMathThreads / 32);
    }
    init_barrier(shared.ready(), cluster);
    init_barrier(shared.read(), cluster);
    fence_barrier_init();
  }
  __syncthreads();  // the barriers
  if (cluster > 1) arrive_at_cluster();
  if (warp < kMathThreads / 32) {
    wait_for_dependencies();
    multiply<T, kTokens, kRows>(a, work, shared, rank, cluster);
  } else if (warp == kMathThreads / 32) {
    if (threadIdx.x % 32 == 0) load_weights<kTokens, kRows>(a, work, shared);
  } else {
    wait_for_dependencies();
    load_x<kTokens, kRows>(a, work, shared);
  }
}

template <class T, int kTokens, int kRows>
void launch_shape(LaunchConfig config, const KernelArgs& args) {
  const auto kernel = skinny_gemm_kernel<T, kTokens, kRows>;
  config.block = kThreads;
  config.shared_bytes = Shape<kTokens, kRows>::kSharedBytes;
  // All that the SM has: blocks of two GEMMs need it.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), "skinny_gemm");
  launch("skinny_gemm", kernel, config, args, config.cluster);
}

template <class T, int kTokens>
void launch_tokens(int tile_rows, const LaunchConfig& config, const KernelArgs& args) {
  return tile_rows == 64 ? launch_shape<T, kTokens, 64>(config, args)
                         : launch_shape<T, kTokens, 128>(config, args);
}

template <class T>
void launch_kernel(int padded_rows, int tile_rows, LaunchConfig config, const KernelArgs& args) {
  switch (padded_rows) {
    case 8:
      return launch_tokens<T, 8>(tile_rows, config, args);
    case 16:
      return launch_tokens<T, 16>(tile_rows, config, args);
    case 32:
      return launch_tokens<T, 32>(tile_rows, config, args);
    default:
      return launch_tokens<T, 64>(tile_rows, config, args);
  }
}

}  // namespace quire::cuda::gemm
