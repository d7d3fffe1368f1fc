// A split GEMM block's shared memory, and what a block computes.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "split_kernel.h"

namespace quire::cuda::gemm::split {

template <class T, Scaling kScaling_, int kRows_, int kGroups, int kBlocksPerSm, bool kSiluMul_>
struct Shape {
  static_assert(!kSiluMul_ || (kGroups == 2 && kScaling_ == Scaling::kRows));
  static constexpr bool kSiluMul = kSiluMul_;
  static constexpr Scaling kScaling = kScaling_;
  using Element = std::conditional_t<kScaling == Scaling::kNone, T, __nv_fp8_e4m3>;  // of x and W
  static constexpr int kStep = kBoxRowBytes / sizeof(Element);                       // elements of k
  static constexpr int kRows = kRows_;                                               // of x
  static constexpr int kColumns = kGroups * kGroupColumns;                           // rows of W, of a tile
  static constexpr int kOut = kSiluMul ? kGroupColumns : kColumns;
  static constexpr int kXSteps = 1;               // stages of x, for each of W
  static constexpr bool kMovesRegisters = false;  // from the warps that load to those that multiply
  static constexpr int kMathThreads = kGroups * 128;
  static constexpr int kMathWarps = kMathThreads / 32;
  static constexpr int kThreads = kMathThreads + 64;
  static constexpr int kUnits = kRows / 8;
  static constexpr int kUnitBytes = kMathThreads * 16;

  static constexpr int kWeightBytes = kColumns * kBoxRowBytes;
  static constexpr int kGroupBytes = kGroupColumns * kBoxRowBytes;
  static constexpr int kXBytes = kRows * kBoxRowBytes;
  static constexpr int kRingBytes = 208 / kBlocksPerSm * 1024;
  static constexpr int kXStages = kBlocksPerSm == 1 ? kGroups == 1 ? 7 : 6 : kGroups == 1 ? 6 : 4;
  static constexpr int kWeightStages = (kRingBytes - kXStages * kXBytes) / kWeightBytes;
  static constexpr int kNumScales =
      kScaling == Scaling::kNone ? 0 : (kScaling == Scaling::kRows ? 1 : kXStages) * kRows;
  static constexpr int kScalesAt = kRingBytes + 8 * (2 * kWeightStages + 2 * kXStages + 1);
  static constexpr int kSharedBytes = 1024 + kScalesAt + kNumScales * 4;
  // Where all parts' sums of a block's units need most. Every part has some.
  static_assert((kUnits + kMaxParts - 1) * kUnitBytes <= kRingBytes);
};

template <class S>
struct Shared {
  uint32_t base;  // aligned to 1024 bytes; at the same place in every block

  __device__ uint32_t weights(int stage) const { return base + stage * S::kWeightBytes; }
  __device__ uint32_t x(int stage) const { return weights(S::kWeightStages) + stage * S::kXBytes; }
  __device__ uint32_t full(int stage) const { return base + S::kRingBytes + 8 * stage; }
  __device__ uint32_t empty(int stage) const { return full(S::kWeightStages + stage); }
  __device__ uint32_t x_full(int stage) const { return empty(S::kWeightStages + stage); }
  __device__ uint32_t x_empty(int stage) const { return x_full(S::kXStages + stage); }
  __device__ uint32_t ready() const { return x_empty(S::kXStages); }  // the other parts' sums are here
  __device__ uint32_t scale(int row) const { return base + S::kScalesAt + 4 * row; }
};

// What a block computes.
template <class S>
struct Part {
  int32_t row;     // of x, the first
  int32_t column;  // of out, the first
  int32_t rank, parts;
  int32_t first_step, num_steps;
  int32_t first_unit, num_units;

  __device__ explicit Part(const KernelArgs& a) : parts(a.parts) {
    rank = static_cast<int32_t>(blockIdx.x) % parts;
    const int32_t tile = static_cast<int32_t>(blockIdx.x) / parts;
    // The last tile ends with the last row, and computes some rows twice, with the same bits.
    row = max(min(tile % a.row_tiles * S::kRows, a.num_rows - S::kRows), 0);
    column = tile / a.row_tiles * S::kOut;
    first_step = a.num_steps * rank / parts;
    num_steps = a.num_steps * (rank + 1) / parts - first_step;
    first_unit = first_unit_of(rank);
    num_units = first_unit_of(rank + 1) - first_unit;
  }
  __device__ int32_t first_unit_of(int32_t other_rank) const { return S::kUnits * other_rank / parts; }
  // Size of a part's sums in a block.
  __device__ int32_t stride() const { return (S::kUnits + parts - 1) / parts * S::kUnitBytes; }
};

}  // namespace quire::cuda::gemm::split
