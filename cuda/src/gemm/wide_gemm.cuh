// GEMM of many rows of x: 128 rows of x times 256 or 224 rows of W per block, both by wgmma from shared
// memory.
//
// Grid: clusters of two blocks, one block per SM, that walk the items of a schedule (wide_schedule.h). Block:
// a warpgroup that loads and two that multiply, 64 rows of x each. Of what both blocks of a cluster need,
// each loads one half for both.
//
// With silu_mul, the two boxes of a tile of W are rows of gate and the rows of up that belong to them, so a
// thread holds gate and up of the same columns. Results go through shared memory to the copy
// engine, which writes them while the next tile is multiplied.
//
// Shared memory: ring [stage]([128 rows of x][128 bytes], [2 kBox rows of W][128 bytes]), results
// [group][2][64 rows][128 bytes], barriers.
#pragma once

#include "common/dependency.cuh"
#include "common/vec.cuh"
#include "common/warpgroup.cuh"
#include "copy_engine.cuh"
#include "silu_mul.cuh"
#include "wgmma.cuh"
#include "wide_instructions.cuh"
#include "wide_kernel.h"

namespace quire::cuda::gemm::wide {

inline constexpr int kGroupThreads = 128;
inline constexpr int kMultiplyGroups = kTileRows / kRowBox;
inline constexpr int kThreads = (1 + kMultiplyGroups) * kGroupThreads;
inline constexpr int kCluster = 2;
inline constexpr int kStages = 4;
inline constexpr int kRowBoxBytes = kRowBox * kBoxRowBytes;
inline constexpr int kXBytes = kTileRows * kBoxRowBytes;

template <bool kSiluMul, int kBox>
struct Shape {
  static constexpr int kOut = kSiluMul ? kBox : 2 * kBox;     // columns of out, of a tile
  static constexpr int kPassColumns = kSiluMul ? kBox : 128;  // of these, written at a time, as two boxes
  static constexpr int kBoxBytes = kBox * kBoxRowBytes;
  static constexpr int kStageBytes = kXBytes + 2 * kBoxBytes;
  static constexpr int kResultBytes = 2 * kRowBoxBytes;
  static constexpr int kResultsAt = kStages * kStageBytes;
  static constexpr int kBarriersAt = kResultsAt + kMultiplyGroups * kResultBytes;
  static constexpr int kSharedBytes = 1024 + kBarriersAt + 2 * kStages * 8;
  static_assert(kBoxBytes % 1024 == 0 && kOut % kPassColumns == 0);
};

template <class S>
struct Shared {
  uint32_t base;  // aligned to 1024 bytes; at the same place in every block

  __device__ uint32_t x(int stage) const { return base + stage * S::kStageBytes; }
  __device__ uint32_t weights(int stage) const { return x(stage) + kXBytes; }
  __device__ uint32_t results(int group) const { return base + S::kResultsAt + group * S::kResultBytes; }
  __device__ uint32_t full(int stage) const { return base + S::kBarriersAt + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return full(kStages + stage); }
};

// One thread. kStep: elements of k in a step.
template <int kStep, class S>
__device__ void load(const KernelArgs& a, const Shared<S>& shared, int32_t rank) {
  constexpr uint16_t kBoth = (1 << kCluster) - 1;
  const auto load_weights = [&](const Tile& tile, int32_t step, int stage) {
    const uint32_t barrier = shared.full(stage);
    arrive_and_expect(barrier, tile.num_rows * kBoxRowBytes + 2 * S::kBoxBytes);
    const int32_t row = tile.column_tile * S::kOut;
    if (tile.shares_x) {
#pragma unroll
      for (int box = 0; box < 2; ++box) {
        copy_box_here(shared.weights(stage) + box * S::kBoxBytes, &a.weight, step * kStep,
                      row + box * a.second_box, barrier);
      }
    } else {
      copy_box_to_blocks(shared.weights(stage) + rank * S::kBoxBytes, &a.weight, step * kStep,
                         row + rank * a.second_box, barrier, kBoth);
    }
  };
  const auto load_x = [&](const Tile& tile, int32_t step, int stage) {
    const uint32_t barrier = shared.full(stage);
    if (tile.shares_x) {
      copy_box_to_blocks(shared.x(stage) + rank * kRowBoxBytes, &a.x, step * kStep, tile.row + rank * kRowBox,
                         barrier, kBoth);
    } else {
      for (int32_t row = 0; row < tile.num_rows; row += kRowBox) {
        copy_box_here(shared.x(stage) + row * kBoxRowBytes, &a.x, step * kStep, tile.row + row, barrier);
      }
    }
  };

  const int32_t num_clusters = gridDim.x / kCluster;
  const int32_t first = blockIdx.x / kCluster;
  const int32_t ahead = min(kStages, a.num_steps);
  RingPosition<kStages> ring;
  const Tile first_tile(a.schedule, first, rank);
  for (int32_t step = 0; step < ahead; ++step) load_weights(first_tile, step, step);
  wait_for_dependencies();
  for (int32_t step = 0; step < ahead; ++step) {
    load_x(first_tile, step, step);
    ring.advance();
  }
  int32_t step = ahead;
  for (int32_t item = first; item < a.schedule.num_items; item += num_clusters) {
    const Tile tile(a.schedule, item, rank);
    for (; step < a.num_steps; ++step) {
      wait_barrier(shared.empty(ring.stage), ring.parity ^ 1);
      load_weights(tile, step, ring.stage);
      load_x(tile, step, ring.stage);
      ring.advance();
    }
    step = 0;
  }
  launch_dependents();
}

// Two elements of the bias from an even n on.
template <class T>
__device__ inline float2 bias_at(const void* bias, int32_t n) {
  return Pair<T>::floats(static_cast<const typename Pair<T>::type*>(bias)[n / 2]);
}

// Sums of float8 products times the scales of their rows, a thread's `row` and row + 8, and columns.
template <bool kSiluMul, int kBox>
__device__ void scale(const KernelArgs& a, float (&acc)[kBox], int32_t row, int32_t column) {
  float row_scale[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    row_scale[half] = a.x_scale[min(row + 8 * half, a.schedule.num_rows - 1)];
  }
#pragma unroll
  for (int c = 0; c < kBox / 4; ++c) {
    const bool is_up = kSiluMul && c >= kBox / 8;
    const int32_t n = column + c * 8 + threadIdx.x % 4 * 2 - (is_up ? kBox : 0);
    float2 scale = make_float2(0, 0);
    if (n < a.n_out) {
      scale = *reinterpret_cast<const float2*>(a.weight_scale + (is_up ? a.n_out + n : n));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[4 * c + i] *= row_scale[i / 2] * (i % 2 == 0 ? scale.x : scale.y);
  }
}

// A warpgroup's 64 rows, from `row` on.
template <class Element, class T, bool kSiluMul, int kBox>
__device__ void write_out(const KernelArgs& a, uint32_t results, float (&acc)[kBox], int32_t row,
                          int32_t column, int group) {
  using S = Shape<kSiluMul, kBox>;
  const int thread = threadIdx.x % kGroupThreads, warp = thread / 32, lane = threadIdx.x % 32;
  if constexpr (std::is_same_v<Element, __nv_fp8_e4m3>) {
    scale<kSiluMul>(a, acc, row + warp * 16 + lane / 4, column);
  }
  if (a.bias != nullptr) {
#pragma unroll
    for (int c = 0; c < kBox / 4; ++c) {
      const bool is_up = kSiluMul && c >= kBox / 8;
      const int32_t n = column + c * 8 + lane % 4 * 2 - (is_up ? kBox : 0);
      const float2 bias = n < a.n_out ? bias_at<T>(a.bias, is_up ? a.n_out + n : n) : make_float2(0, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[4 * c + i] += i % 2 == 0 ? bias.x : bias.y;
    }
  }
  // Row and 16-byte column that this lane stores to, of four matrices: 16 rows x 2 columns.
  const int to_row = warp * 16 + lane % 16, to_column = lane / 16;
  constexpr int kColumns = S::kPassColumns / 8, kRowColumns = kBoxColumns / 8;  // of 16 bytes
  constexpr int kSecondBox = kColumns - kRowColumns;  // where the second box begins; they may overlap
#pragma unroll
  for (int first = 0; first < S::kOut; first += S::kPassColumns) {
    if (thread == 0) wait_stores_read();
    sync_threads(1 + group, kGroupThreads);
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) {
      uint32_t values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = (first / 8 + c) * 4 + 2 * i;  // rows 0 to 7 and 8 to 15 of column c, then of c + 1
        if constexpr (kSiluMul) {
          values[i] = silu_mul<T>(acc[at], acc[at + 1], acc[at + kBox / 2], acc[at + kBox / 2 + 1]);
        } else {
          values[i] = bits(Pair<T>::from(acc[at], acc[at + 1]));
        }
      }
      const auto store_to = [&](uint32_t box, int in_box) {
        store_matrices(box + to_row * 128 + (in_box + to_column ^ to_row % 8) * 16, values);
      };
      if (c < kRowColumns) store_to(results, c);
      if (c >= kSecondBox) store_to(results + kRowBoxBytes, c - kSecondBox);
    }
    fence_shared_for_async();
    sync_threads(1 + group, kGroupThreads);
    if (thread == 0) {
      const int32_t n = column + first, second = n + kSecondBox * 8;
      if (n < a.n_out) store_box(&a.out, n, row, results);
      if (second < a.n_out) store_box(&a.out, second, row, results + kRowBoxBytes);
      commit_stores();
    }
  }
}

template <class Element, class T, bool kSiluMul, int kBox>
__device__ void multiply_tiles(const KernelArgs& a, const Shared<Shape<kSiluMul, kBox>>& shared,
                               int32_t rank) {
  using S = Shape<kSiluMul, kBox>;
  // From one lane, so that the compiler knows it to be uniform in the warp.
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kGroupThreads - 1, 0);
  const int lane = threadIdx.x % 32;
  const uint32_t empty_there = address_in_block(shared.empty(0), lane % kCluster);
  const auto release = [&](int stage) {
    if (lane < kCluster) release_in_cluster(empty_there + 8 * stage);
  };
  const int32_t num_clusters = gridDim.x / kCluster;
  RingPosition<kStages> ring;
  float acc[kBox];
  for (int32_t item = blockIdx.x / kCluster; item < a.schedule.num_items; item += num_clusters) {
    const Tile tile(a.schedule, item, rank);
    const int32_t in_tile = group * kRowBox;
    if (tile.is_empty || in_tile >= tile.num_rows) {
      for (int32_t step = 0; step < a.num_steps; ++step) {
        wait_barrier(shared.full(ring.stage), ring.parity);
        release(ring.stage);
        ring.advance();
      }
      continue;
    }
    int stage_before = 0;
    for (int32_t step = 0; step < a.num_steps; ++step) {
      wait_barrier(shared.full(ring.stage), ring.parity);
      const uint64_t x = operand_at(shared.x(ring.stage) + group * kRowBoxBytes);
      const uint64_t w = operand_at(shared.weights(ring.stage));
      begin_products();
#pragma unroll
      for (int at = 0; at < kBoxRowBytes; at += 32) {
        multiply<Element>(acc, x + (at >> 4), w + (at >> 4), step > 0 || at > 0);
      }
      commit_products();
      if (step > 0) {
        wait_products<1>();
        release(stage_before);
      }
      stage_before = ring.stage;
      ring.advance();
    }
    wait_products<0>();
    release(stage_before);
    write_out<Element, T, kSiluMul, kBox>(a, shared.results(group), acc, tile.row + in_tile,
                                          tile.column_tile * S::kOut, group);
  }
  if (threadIdx.x % kGroupThreads == 0) wait_stores();
}

template <class Element, class T, bool kSiluMul, int kBox>
__global__ void __launch_bounds__(kThreads, 1) wide_gemm_kernel(const __grid_constant__ KernelArgs a) {
  extern __shared__ unsigned char dynamic[];
  using S = Shape<kSiluMul, kBox>;
  const Shared<S> shared = {(shared_address(dynamic) + 1023) / 1024 * 1024};
  const int32_t rank = rank_in_cluster();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&a.weight);
    prefetch_tensor_map(&a.x);
    prefetch_tensor_map(&a.out);
    for (int i = 0; i < kStages; ++i) {
      init_barrier(shared.full(i), 1);
      init_barrier(shared.empty(i), kCluster * kMultiplyGroups * kGroupThreads / 32);
    }
    fence_barrier_init();
  }
  __syncthreads();
  sync_cluster();  // both blocks' barriers are there
  if (threadIdx.x < kGroupThreads) {
    shrink_registers<40>();
    if (threadIdx.x == 0) load<kBoxRowBytes / static_cast<int>(sizeof(Element))>(a, shared, rank);
    __syncwarp();
  } else {
    grow_registers<232>();
    wait_for_dependencies();
    multiply_tiles<Element, T, kSiluMul, kBox>(a, shared, rank);
    __syncwarp();
  }
  sync_cluster();  // shared memory must outlive the other block's copies and arrivals
}

template <class Element, class T, bool kSiluMul, int kBox>
void launch_kernel(LaunchConfig config, const KernelArgs& args) {
  config.block = kThreads;
  config.cluster = kCluster;
  config.shared_bytes = Shape<kSiluMul, kBox>::kSharedBytes;
  launch("wide_gemm", wide_gemm_kernel<Element, T, kSiluMul, kBox>, config, args);
}

}  // namespace quire::cuda::gemm::wide
