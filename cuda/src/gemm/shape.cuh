// A skinny GEMM block's shared memory, its rings and its share of the work.
#pragma once

#include "copy_engine.cuh"
#include "kernels.h"

namespace quire::cuda::gemm {

inline constexpr int kMaxCluster = 8;
inline constexpr int kPartialPad = 4;  // floats; keeps a fragment's 32 values in distinct banks

template <int kTokens, int kRows>
struct Shape {
  static constexpr int kMathThreads = 2 * kRows;  // a warpgroup for each 64 rows of a tile
  static constexpr int kMathWarps = kMathThreads / 32;
  static constexpr int kThreads = kMathThreads + 64;
  static constexpr int kBoxBytes = kLoadBytes / 2;
  static constexpr int kBoxesAlongK = kRows == 64 ? 2 : 1;  // of the two boxes of a stage
  static constexpr int kXBoxBytes = kTokens * kBoxColumns * 2;
  static constexpr int kXLoadBytes = kBoxesAlongK * kXBoxBytes;
  static constexpr int kXStages = kTokens == 8 ? 8 / kBoxesAlongK : kXLoadBytes > 8192 ? 2 : 3;
  static constexpr int kExchange = kTokens < 32 ? kTokens : 32;  // columns of x exchanged at a time
  static constexpr int kPartialBytes = kExchange * (kRows + kPartialPad * kMaxCluster) * 4;
  static constexpr int kBarrierBytes = 256;
  static constexpr int kBudget = 113 * 1024;  // half of an SM
  static constexpr int kFit = (kBudget - kBarrierBytes - kXStages * kXLoadBytes - kPartialBytes) / kLoadBytes;
  static constexpr int kStages = kFit < 6 ? kFit : 6;
  static constexpr int kSharedBytes =
      kStages * kLoadBytes + kXStages * kXLoadBytes + kPartialBytes + kBarrierBytes;
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
  const float* partial_sums;

  __device__ explicit Shared(const unsigned char* base) {
    weights = shared_address(base);
    x = weights + S::kStages * kLoadBytes;
    partial = x + S::kXStages * S::kXLoadBytes;
    barriers = partial + S::kPartialBytes;
    partial_sums = reinterpret_cast<const float*>(base + (partial - weights));
  }
  __device__ uint32_t full(int stage) const { return barriers + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return full(S::kStages + stage); }
  __device__ uint32_t x_full(int stage) const { return full(2 * S::kStages + stage); }
  __device__ uint32_t x_empty(int stage) const { return x_full(S::kXStages + stage); }
  __device__ uint32_t ready() const { return x_full(2 * S::kXStages); }  // all partial sums are here
  __device__ uint32_t read() const { return ready() + 8; }               // what I sent is read by all
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
  // The load before whose multiplication the next kernel's blocks may come.
  __device__ int32_t trigger_at(const KernelArgs& a) const { return max(num_loads() - a.trigger, 0); }
  __device__ int32_t num_loads() const { return num_tiles * num_steps; }
  __device__ int32_t tile(int32_t load) const { return first_tile + load / num_steps * tile_stride; }
  __device__ int32_t step(int32_t load) const { return first_step + load % num_steps; }
};

}  // namespace quire::cuda::gemm
