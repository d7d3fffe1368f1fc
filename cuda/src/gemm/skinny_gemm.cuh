// GEMM of few rows of x, bound by reading W: W's rows are the 64-row operand of wgmma, x's rows its columns.
//
// Grid: clusters of S blocks, one block per SM. A cluster walks tiles of kRows rows of W; of each tile, block
// r of the cluster multiplies the r-th part of k. Each block sends every block of the cluster (itself too)
// that one's part of the tile's rows; a block adds up what it got in the order of the ranks, and writes it.
//
// Block: a warpgroup that multiplies for each 64 rows of a tile, a warp that loads W, one that loads x. Both
// loads run ahead through rings of their own, across tiles. W's loads do not wait for the kernels in front:
// the ring is full, and more of W on its way into L2, before x is there.
//
// Shared memory: ring of W [stage][2][64 rows][64], ring of x [stage][k / 64 of a stage][kTokens][64],
// partial sums [S ranks][kExchange][kRows / S + 4] float, barriers.
#pragma once

#include "common/dependency.cuh"
#include "common/vec.cuh"
#include "copy_engine.cuh"
#include "shape.cuh"
#include "wgmma.cuh"

namespace quire::cuda::gemm {

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
  if (work.trigger_at(a) == 0) launch_dependents();
  RingCursor<S::kStages> ring;
  for (int32_t i = 0; i < num_loads; ++i) {
    if (i == S::kStages) {
      for (int32_t j = i; j < min(i + a.prefetch, num_loads); ++j) {
        for (int box = 0; box < 2; ++box) {
          const int2 at = box_at<kRows>(a, work.tile(j), work.step(j), box);
          prefetch_box(&a.weight, at.y, at.x, CachePolicy::kNormal);
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

template <int kMathThreads>
__device__ inline void sync_math_warps() {
  asm volatile("bar.sync 1, %0;" ::"n"(kMathThreads) : "memory");
}

// Which rows of a tile each block of the cluster adds up: `rows` of them; with silu_mul, as many gate rows as
// up rows, gate first.
template <int kTokens, int kRows>
struct Parts {
  int cluster, rows_log2, rows, stride;  // stride: floats between columns of the partial sums
  bool silu_mul;

  __device__ Parts(const KernelArgs& a, int cluster)
      : cluster(cluster),
        rows_log2((kRows == 128 ? 7 : 6) - (cluster == 8 ? 3 : cluster / 2)),
        rows(1 << rows_log2),
        stride(rows + kPartialPad),
        silu_mul(a.silu_mul) {}
  __device__ int columns_log2() const { return rows_log2 - silu_mul; }  // of out, of a block
  __device__ int columns() const { return 1 << columns_log2(); }
  // Rank and row within the part, of a row of the tile.
  __device__ int2 locate(int row) const {
    const int pair = silu_mul ? row % (kRows / 2) : row, first = silu_mul ? row / (kRows / 2) * columns() : 0;
    return make_int2(pair >> columns_log2(), first + (pair & (columns() - 1)));
  }
  __device__ int offset(int rank, int column, int row) const {  // floats
    return (rank * Shape<kTokens, kRows>::kExchange + column) * stride + row;
  }
};

// Sends the columns [first, first + kExchange) of the block's partial sums to the blocks that add them up.
template <int kTokens, int kRows>
__device__ void send(const float (&acc)[kTokens / 2], const Parts<kTokens, kRows>& parts,
                     const Shared<kTokens, kRows>& shared, uint32_t rank, int first) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int2 at = parts.locate(warp * 16 + lane / 4 + 8 * h);
    const uint32_t mine = shared.partial + parts.offset(rank, lane % 4 * 2, at.y) * 4;
    const auto send_all = [&](auto&& store) {
#pragma unroll
      for (int c = 0; c < Shape<kTokens, kRows>::kExchange / 8; ++c) {
        const float* const from = acc + (first / 8 + c) * 4 + 2 * h;
        store(c * 8 * parts.stride * 4, from[0]);
        store((c * 8 + 1) * parts.stride * 4, from[1]);
      }
    };
    if (parts.cluster == 1) {
      send_all([&](int offset, float value) { store_in_block(mine + offset, value); });
    } else {
      const uint32_t to = address_in_block(mine, at.x), ready = address_in_block(shared.ready(), at.x);
      send_all([&](int offset, float value) { store_in_cluster(to + offset, value, ready); });
    }
  }
}

// The cluster's sum of four rows of the part, of one column; in the order of the ranks.
template <int kTokens, int kRows>
__device__ float4 sum_of_cluster(const float* partial, const Parts<kTokens, kRows>& parts, int column,
                                 int row) {
  float4 sum = *reinterpret_cast<const float4*>(partial + parts.offset(0, column, row));
#pragma unroll
  for (int rank = 1; rank < kMaxCluster; ++rank) {
    if (rank < parts.cluster) {
      const float4 more = *reinterpret_cast<const float4*>(partial + parts.offset(rank, column, row));
      sum.x += more.x;
      sum.y += more.y;
      sum.z += more.z;
      sum.w += more.w;
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

// Adds up the partial sums of columns [first, first + kExchange) of x and writes them.
template <class T, int kTokens, int kRows>
__device__ void write_out(const KernelArgs& a, const float* partial, const Parts<kTokens, kRows>& parts,
                          uint32_t rank, int32_t tile, int first) {
  using S = Shape<kTokens, kRows>;
  const int vecs_log2 = parts.columns_log2() - 2;
  for (int i = threadIdx.x; i < S::kExchange << vecs_log2; i += S::kMathThreads) {
    const int column = i >> vecs_log2, row = (i - (column << vecs_log2)) * 4;
    const int m = first + column;
    const int32_t n = (tile * parts.cluster + rank) * parts.columns() + row;
    if (m >= a.num_rows || n >= a.n_out) continue;
    float4 sum = sum_of_cluster(partial, parts, column, row);
    sum = plus_bias<T>(a, sum, n, a.n_out);
    Vec<T, 4> y;
    if (a.silu_mul) {
      float4 up = sum_of_cluster(partial, parts, column, row + parts.columns());
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
  constexpr int kExchanges = kTokens / S::kExchange;  // of a tile
  const int lane = threadIdx.x % 32, warpgroup = threadIdx.x / 128;
  const Parts<kTokens, kRows> parts(a, cluster);
  const int32_t trigger_at = work.trigger_at(a);
  int32_t load = 0;
  RingCursor<S::kStages> ring;
  RingCursor<S::kXStages> x_ring;
  uint32_t exchange = 0;
  for (int32_t t = 0; t < work.num_tiles; ++t) {
    const bool is_last_tile = t + 1 == work.num_tiles;
    float acc[kTokens / 2] = {};
    for (int32_t step = 0; step < work.num_steps; ++step) {
      if (load == trigger_at && load > 0) launch_dependents();
      ++load;
      wait_barrier(shared.full(ring.stage), ring.phase);
      wait_barrier(shared.x_full(x_ring.stage), x_ring.phase);
      // Of a tile of 128 rows, each warpgroup has a box; of one of 64 rows, there is one, with both boxes.
      const uint32_t w = shared.weights + ring.stage * kLoadBytes + warpgroup * S::kBoxBytes;
      const uint32_t x = shared.x + x_ring.stage * S::kXLoadBytes;
      wgmma_fence();
#pragma unroll
      for (int box = 0; box < S::kBoxesAlongK; ++box) {
#pragma unroll
        for (int k = 0; k < kBoxColumns; k += 16) {
          Wgmma<T, kTokens>::run(acc, operand_at(w + box * S::kBoxBytes + k * 2),
                                 operand_at(x + box * S::kXBoxBytes + k * 2));
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
    if (is_last_tile && trigger_at == load) launch_dependents();
#pragma unroll
    for (int part = 0; part < kExchanges; ++part) {
      const int first = part * S::kExchange;
      if (cluster > 1) {
        if (exchange == 0) {
          wait_for_cluster();  // every block's barriers are there
        } else {
          wait_barrier(shared.read(), (exchange - 1) % 2);
        }
        if (threadIdx.x == 0) arrive_expecting(shared.ready(), kRows * S::kExchange * 4);
      }
      send<kTokens, kRows>(acc, parts, shared, rank, first);
      if (cluster > 1) {
        wait_barrier(shared.ready(), exchange % 2);
      } else {
        sync_math_warps<S::kMathThreads>();  // the block's sums
      }
      const int32_t tile = work.first_tile + t * work.tile_stride;
      write_out<T>(a, shared.partial_sums, parts, rank, tile, first);
      ++exchange;
      // After the last one nothing is sent, to any block: this one may end.
      if (is_last_tile && part + 1 == kExchanges) break;
      sync_math_warps<S::kMathThreads>();  // what came is read
      if (cluster > 1 && threadIdx.x < cluster) {
        arrive_in_cluster(address_in_block(shared.read(), threadIdx.x));
      }
    }
  }
}

template <class T, int kTokens, int kRows>
__global__ void __launch_bounds__(Shape<kTokens, kRows>::kThreads, 2)
    skinny_gemm_kernel(const __grid_constant__ KernelArgs a, uint32_t cluster) {
  using S = Shape<kTokens, kRows>;
  extern __shared__ __align__(1024) unsigned char base[];
  const Shared<kTokens, kRows> shared(base);
  const uint32_t rank = rank_in_cluster();
  const Work work(a, rank, cluster);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&a.weight);
    prefetch_tensor_map(&a.x);
    for (int i = 0; i < S::kStages; ++i) {
      init_barrier(shared.full(i), 1);
      init_barrier(shared.empty(i), S::kMathWarps);
    }
    for (int i = 0; i < S::kXStages; ++i) {
      init_barrier(shared.x_full(i), 1);
      init_barrier(shared.x_empty(i), S::kMathWarps);
    }
    init_barrier(shared.ready(), 1);
    init_barrier(shared.read(), cluster);
    fence_barrier_init();
  }
  __syncthreads();  // the barriers
  if (cluster > 1) arrive_at_cluster();
  if (warp < S::kMathWarps) {
    wait_for_dependencies();
    multiply<T, kTokens, kRows>(a, work, shared, rank, cluster);
  } else if (warp == S::kMathWarps) {
    if (threadIdx.x % 32 == 0) load_weights<kTokens, kRows>(a, work, shared);
  } else {
    wait_for_dependencies();
    load_x<kTokens, kRows>(a, work, shared);
  }
}

template <class T, int kTokens, int kRows>
void launch_shape(LaunchConfig config, const KernelArgs& args) {
  const auto kernel = skinny_gemm_kernel<T, kTokens, kRows>;
  config.block = Shape<kTokens, kRows>::kThreads;
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
