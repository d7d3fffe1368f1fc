// A skinny GEMM block's shared memory and its rings.
#pragma once

#include "copy_engine.cuh"
#include "kernels.h"

namespace quire::cuda::gemm {

inline constexpr int kMathWarps = 4;
inline constexpr int kMathThreads = 32 * kMathWarps;
inline constexpr int kThreads = kMathThreads + 64;
inline constexpr int kBoxBytes = kLoadBytes / 2;

template <int kTokens>
struct Shape {
  static constexpr int kGroups = kTokens / 8;  // of 8 columns of x
  // So many of these are finished at once.
  static constexpr int kBatch = kGroups % 4 == 0 ? 4 : kGroups % 3 == 0 ? 3 : kGroups;
  static constexpr int kXBoxBytes = kTokens * kBoxColumns * 2;
  static constexpr int kXLoadBytes = 2 * kXBoxBytes;
  static_assert(kTokens % 8 == 0 && kGroups % kBatch == 0);

  // Blocks of a cluster share the groups: units, of a group and a warp, that one block adds up at most.
  __host__ __device__ static constexpr int units_per_rank(int parts_log2) {
    return ((kGroups + (1 << parts_log2) - 1) >> parts_log2) * kMathWarps;
  }
  static constexpr int exchange_bytes(int parts_log2) {
    return ((1 << parts_log2) - 1) * units_per_rank(parts_log2) * 32 * 16;
  }
  static constexpr int staging_bytes(bool silu_mul) { return kTokens * kBoxRows * (silu_mul ? 1 : 2); }
};

inline constexpr int kMaxStages = 6;
inline constexpr int kMaxXStages = 4;
inline constexpr int kTileSlots =
    8;  // more tiles than the loading warp may be ahead, by a load of each stage
// Barriers other than full(): one for each lane of a warp, which initializes them.
inline constexpr int kNumOtherBarriers = kMaxStages + 2 * kMaxXStages + 1 + kTileSlots;
inline constexpr int kBarrierBytes = (kMaxStages + kNumOtherBarriers) * 8 + kTileSlots * 4;
static_assert(kTileSlots > kMaxStages + 1 && kNumOtherBarriers <= 32);
inline constexpr int kSharedOfSm = 228 * 1024;
inline constexpr int kSharedReserved = 1024;  // of each block

template <class S>
Layout make_layout(int parts_log2, bool silu_mul, int blocks_per_sm, int stage_bytes, int x_stage_bytes,
                   int min_x_stages) {
  constexpr int kMinStages = 2;
  const int exchange_bytes = S::exchange_bytes(parts_log2), staging_bytes = S::staging_bytes(silu_mul);
  const int budget = kSharedOfSm / blocks_per_sm - kSharedReserved;
  const int room = budget - kBarrierBytes - exchange_bytes - staging_bytes;
  Layout layout{};
  for (int stages = kMaxStages; stages >= kMinStages && layout.num_x_stages < min_x_stages; --stages) {
    const int x_stages = (room - stages * stage_bytes) / x_stage_bytes;
    layout.num_stages = stages;
    layout.num_x_stages = x_stages < kMaxXStages ? x_stages : kMaxXStages;
  }
  layout.exchange = layout.num_stages * stage_bytes + layout.num_x_stages * x_stage_bytes;
  layout.staging = layout.exchange + exchange_bytes;
  layout.barriers = layout.staging + staging_bytes;
  return layout;
}

// Shared addresses.
template <class S>
struct Shared {
  uint32_t weights, x, exchange, staging, barriers;
  int num_stages, num_x_stages, stage_bytes;

  __device__ Shared(const unsigned char* base, const Layout& layout, int bytes_of_stage)
      : stage_bytes(bytes_of_stage) {
    num_stages = layout.num_stages;
    num_x_stages = layout.num_x_stages;
    weights = shared_address(base);
    x = weights + num_stages * stage_bytes;
    exchange = weights + layout.exchange;
    staging = weights + layout.staging;
    barriers = weights + layout.barriers;
  }
  __device__ uint32_t full(int stage) const { return barriers + 8 * stage; }
  __device__ uint32_t other_barriers() const { return full(kMaxStages); }
  // All math warps arrive at these.
  __device__ uint32_t empty(int stage) const { return other_barriers() + 8 * stage; }
  __device__ uint32_t x_empty(int stage) const { return empty(kMaxStages + stage); }
  __device__ uint32_t x_full(int stage) const { return x_empty(kMaxXStages + stage); }
  __device__ uint32_t ready() const { return x_full(kMaxXStages); }  // all partial sums are here
  __device__ uint32_t tile_known(int slot) const { return ready() + 8 + 8 * slot; }
  __device__ uint32_t tile(int slot) const { return tile_known(kTileSlots) + 4 * slot; }
};

// A place in a ring, and the parity of its phase.
struct RingCursor {
  int stage = 0;
  uint32_t phase = 0;

  __device__ void advance(int num_stages) {
    if (++stage == num_stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

inline constexpr int32_t kNoTile = -1;

// Block's part of k, the same of each of its tiles, in steps of one load.
struct Part {
  int32_t rank, parts, parts_log2, first_step, num_steps;

  explicit __device__ Part(const KernelArgs& a) : parts(1 << a.parts_log2), parts_log2(a.parts_log2) {
    rank = blockIdx.x & (parts - 1);
    first_step = a.num_steps * rank >> parts_log2;
    num_steps = (a.num_steps * (rank + 1) >> parts_log2) - first_step;
  }
  __device__ int32_t first_tile() const { return blockIdx.x >> parts_log2; }
};

}  // namespace quire::cuda::gemm
