// GEMM of more than 32 rows of x with a weight of fewer bits than x: as split_gemm.cuh, but W is widened to
// the operand of wgmma that is in registers (widen.cuh). A stage of W is multiplied with several stages of x,
// 64 columns each.
//
// A warpgroup has 64 rows of W. While the products of 64 columns run, it widens the next 64. Sums of float8
// are scaled each 128 columns; elements of four bits are scaled while they are widened.
//
// Shared memory: as split_gemm.cuh. A stage of W is [group]([64 rows][128 bytes]), of four bits
// [group]([2][64 rows][128 bytes], scales and zeros).
#pragma once

#include "common/mma.cuh"
#include "four_bits.cuh"
#include "split_block.cuh"
#include "split_output.cuh"
#include "weight_boxes.cuh"
#include "wgmma.cuh"
#include "wide_instructions.cuh"
#include "widen.cuh"
#include "widened_kernel.h"

namespace quire::cuda::gemm::split {

template <WeightFormat kFormat_, class T_, int kRows_, int kGroups>
struct WidenedShape {
  using T = T_;  // of x
  static constexpr WeightFormat kFormat = kFormat_;
  static constexpr bool kIsFourBit = bits_of(kFormat) == 4;
  static constexpr Scaling kScaling = Scaling::kNone;
  static constexpr int kStep = kBoxColumns;  // columns of x, in a stage
  static constexpr int kXSteps = x_steps_of(kFormat);
  static constexpr int kRows = kRows_;                      // of x
  static constexpr int kColumns = kGroups * kGroupColumns;  // rows of W, of a tile
  static constexpr int kOut = kColumns;
  static constexpr bool kMovesRegisters = kGroups == 2;
  static constexpr int kMathThreads = kGroups * 128;
  static constexpr int kMathWarps = kMathThreads / 32;
  static constexpr int kThreads = kMathThreads + (kMovesRegisters ? 128 : 64);
  static constexpr int kUnits = kRows / 8;
  static constexpr int kUnitBytes = kMathThreads * 16;

  static constexpr int kBoxes = kIsFourBit ? 2 : 1;
  static constexpr int kBoxBytes = kBoxRows * kBoxRowBytes;
  static constexpr int kMaxGroupBytes = kIsFourBit ? 2 * kGroupUnits * kBoxRows * 2 : 0;
  static constexpr int kGroupBytes = kBoxes * kBoxBytes + kMaxGroupBytes;
  static constexpr int kWeightBytes = kGroups * kGroupBytes;
  static constexpr int kXBytes = kRows * kBoxRowBytes;
  static constexpr int kRingBytes = 208 * 1024;
  static constexpr int kXStages = 8;
  static constexpr int kWeightStages = (kRingBytes - kXStages * kXBytes) / kWeightBytes;
  static constexpr int kScalesAt = kRingBytes + 8 * (2 * kWeightStages + 2 * kXStages + 1);
  static constexpr int kSharedBytes = 1024 + kScalesAt;
  static_assert((kUnits + kMaxParts - 1) * kUnitBytes <= kRingBytes && kWeightBytes % 1024 == 0);
};

// In W, row `row` of 16 of which a warp has the first at `first` of the tiles' rows, or row + 8 (half 1).
// Rows that are not there are taken for the last one.
__device__ inline int32_t row_of_weight(const WidenedArgs& a, int32_t first, int row, int half) {
  if (a.silu_mul) return min(first / 2 + row, a.n_out - 1) + half * a.n_out;
  return min(first + row + half * 8, a.n_out - 1);
}

// One thread.
template <class S>
__device__ void load_narrow_weights(const WidenedArgs& a, const Part<S>& part, const Shared<S>& shared) {
  RingPosition<S::kWeightStages> ring;
  int32_t bytes = S::kColumns * S::kBoxes * kBoxRowBytes;
  if constexpr (S::kIsFourBit) {
    bytes += S::kColumns / kBoxRows * a.groups.box_bytes * (a.groups.has_zeros ? 2 : 1);
  }
#pragma unroll 1
  for (int32_t step = 0; step < part.num_steps; ++step) {
    if (step >= S::kWeightStages) wait_barrier(shared.empty(ring.stage), ring.parity ^ 1);
    const uint32_t full = shared.full(ring.stage);
    arrive_and_expect(full, bytes);
#pragma unroll 1
    for (int group = 0; group < S::kColumns / kBoxRows; ++group) {
      const int32_t row = part.column + group * kBoxRows, at_step = part.first_step + step;
      uint32_t to = shared.weights(ring.stage) + group * S::kGroupBytes;
#pragma unroll
      for (int box = 0; box < S::kBoxes; ++box, to += S::kBoxBytes) {
        copy_box(to, &a.weight, weight_box_at(a.silu_mul, row, (at_step * S::kBoxes + box) * kBoxColumns),
                 full, CachePolicy::kEvictFirst);
      }
      if constexpr (S::kIsFourBit) {
        const int4 at = groups_at(a.groups, a.silu_mul, row, at_step);
        copy_box(to, &a.groups.scales, at, full, CachePolicy::kEvictFirst);
        if (a.groups.has_zeros) {
          copy_box(to + a.groups.box_bytes, &a.groups.zeros, at, full, CachePolicy::kEvictFirst);
        }
      }
    }
    ring.advance();
  }
  launch_dependents();
}

// 64 columns of a warpgroup's rows, as operands of wgmma.
using Operands = uint32_t[4][4];

// widen(w, step, operands): of 64 columns of a stage of W, `step` of x's, this warpgroup's rows at w.
// scale(acc, sums): after 128 columns, whose products are acc.
template <class S>
struct NarrowWeights {
  using OfLoad = Widen<typename S::T, S::kFormat>;
  static constexpr bool kScalesSums = true;

  const float* rows[2];  // scales of this lane's rows of W
  int32_t step, last;
  float2 next;  // loaded a step ahead
  uint32_t lane_offset;

  __device__ NarrowWeights(const WidenedArgs& a, const Part<S>& part, int warp)
      : step(part.first_step), last(a.num_scales - 1), lane_offset(matrices_at(warp % 4, threadIdx.x % 32)) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t row = row_of_weight(a, part.column + warp * 16, threadIdx.x % 32 / 4, half);
      rows[half] = a.weight_scale + int64_t{row} * a.num_scales;
    }
    load_scales();
  }
  __device__ void load_scales() {
    const int32_t at = min(step++, last);
    next = make_float2(__ldg(rows[0] + at), __ldg(rows[1] + at));
  }

  __device__ void widen(uint32_t w, int x_step, Operands& operands) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t words[4];
      load_matrices(words, w + lane_offset ^ (x_step * 64 + i * 32));
      OfLoad::run(words, reinterpret_cast<uint32_t (&)[2][4]>(operands[2 * i]));
    }
  }

  __device__ void scale(const float (&acc)[S::kRows / 2], float (&sums)[S::kRows / 2]) {
    const float low = next.x * OfLoad::kFactor, high = next.y * OfLoad::kFactor;
#pragma unroll
    for (int i = 0; i < S::kRows / 2; ++i) sums[i] = fmaf(acc[i], i % 4 < 2 ? low : high, sums[i]);
    load_scales();
  }
};

template <class S>
  requires S::kIsFourBit
struct NarrowWeights<S> {
  static constexpr bool kScalesSums = false;

  FourBits<typename S::T, S::kFormat> elements;
  uint32_t lane_offset;

  __device__ NarrowWeights(const WidenedArgs& a, const Part<S>&, int warp)
      : elements(a.groups, warp % 4), lane_offset(matrices_at(warp % 4, threadIdx.x % 32)) {}

  __device__ void widen(uint32_t w, int x_step, Operands& operands) {
    uint32_t words[4];
    load_matrices(words, w + x_step / 4 * S::kBoxBytes + lane_offset ^ (x_step % 4 * 32));
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j % 2 == 0) elements.enter_group(w, x_step * (S::kStep / kGroupUnit) + j / 2);
      elements.widen(words, j, operands[j]);
    }
  }
};

template <class S>
__device__ void multiply_widened(float (&sums)[S::kRows / 2], const WidenedArgs& a, const Part<S>& part,
                                 const Shared<S>& shared, int warp) {
  using Weights = NarrowWeights<S>;
  const int lane = threadIdx.x % 32;
  Weights weights(a, part, warp);
  RingPosition<S::kWeightStages> ring;
  RingPosition<S::kXStages> x_ring;
  Operands operands[2];
#pragma unroll
  for (float& sum : sums) sum = 0.0f;
  const auto rows = [&] { return shared.weights(ring.stage) + warp / 4 * S::kGroupBytes; };
  const auto multiply = [&](float (&acc)[S::kRows / 2], const Operands& widened, bool adds) {
    wait_barrier(shared.x_full(x_ring.stage), x_ring.parity);
    const uint64_t x = operand_at(shared.x(x_ring.stage));
    begin_products();
#pragma unroll
    for (int i = 0; i < 4; ++i) wide::multiply<typename S::T>(acc, widened[i], x + 2 * i, adds || i > 0);
    commit_products();
  };
  const auto multiply_two = [&](float (&acc)[S::kRows / 2], int32_t step, int x_step, bool adds) {
    multiply(acc, operands[0], adds);
    const int first = x_ring.stage;
    x_ring.advance();
    weights.widen(rows(), x_step + 1, operands[1]);
    multiply(acc, operands[1], true);
    wait_products<1>();
    if (lane == 0) arrive(shared.x_empty(first));
    if (x_step + 2 < S::kXSteps) {
      weights.widen(rows(), x_step + 2, operands[0]);
    } else {
      if (lane == 0) arrive(shared.empty(ring.stage));
      ring.advance();
      if (step + 1 < part.num_steps) {
        wait_barrier(shared.full(ring.stage), ring.parity);
        weights.widen(rows(), 0, operands[0]);
      }
    }
    wait_products<0>();
    if (lane == 0) arrive(shared.x_empty(x_ring.stage));
    x_ring.advance();
  };
  wait_barrier(shared.full(0), 0);
  weights.widen(rows(), 0, operands[0]);
#pragma unroll 1
  for (int32_t step = 0; step < part.num_steps; ++step) {
#pragma unroll 1
    for (int x_step = 0; x_step < S::kXSteps; x_step += 2) {
      if constexpr (Weights::kScalesSums) {
        float acc[S::kRows / 2];
        multiply_two(acc, step, x_step, false);
        weights.scale(acc, sums);
      } else {
        multiply_two(sums, step, x_step, true);
      }
    }
  }
}

template <class S>
__device__ void write_widened(const WidenedArgs& a, const Part<S>& part, const Shared<S>& shared) {
  using T = typename S::T;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, in_quad = lane % 4;
  const int32_t first = part.column + warp * 16;
  float bias[2] = {0.0f, 0.0f};
  if (a.bias != nullptr) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bias[half] = to_float(static_cast<const T*>(a.bias)[row_of_weight(a, first, lane / 4, half)]);
    }
  }
  // Not unrolled: code that a block runs once costs more to fetch than to run.
#pragma unroll 1
  for (int32_t i = 0; i < part.num_units; ++i) {
    float4 sums = sums_of(part, shared, i, threadIdx.x);
    sums = make_float4(sums.x + bias[0], sums.y + bias[0], sums.z + bias[1], sums.w + bias[1]);
    const int32_t m = part.row + (part.first_unit + i) * 8 + lane / 4;
    if (!a.silu_mul) {
      const uint32_t low = transposed(rounded_pair<T>(sums.x, sums.y));
      const uint32_t high = transposed(rounded_pair<T>(sums.z, sums.w));
      store_unit<T>(a, m, first + in_quad * 4, low, high);
      continue;
    }
    const Vec<uint32_t, 1> word = {{transposed(silu_mul<T>(sums.x, sums.y, sums.z, sums.w))}};
    const int32_t n = first / 2 + in_quad * 2;
    if (m < a.num_rows && n < a.n_out) {
      store_vec(reinterpret_cast<uint32_t*>(static_cast<T*>(a.out) + m * a.stride_out + n), word);
    }
  }
}

template <WeightFormat kFormat, class T, int kRows, int kGroups>
__global__ void __launch_bounds__((WidenedShape<kFormat, T, kRows, kGroups>::kThreads), 1)
    widened_gemm_kernel(const __grid_constant__ WidenedArgs a) {
  using S = WidenedShape<kFormat, T, kRows, kGroups>;
  run_block<S>(
      a, [&](const auto& part, const auto& shared) { load_narrow_weights(a, part, shared); },
      [&](const auto& part, const auto& shared, int warp, auto& acc) {
        multiply_widened(acc, a, part, shared, warp);
      },
      [&](const auto& part, const auto& shared) { write_widened(a, part, shared); });
}

template <WeightFormat kFormat, class T, int kRows, int kGroups>
void launch_widened_kernel(LaunchConfig config, const WidenedArgs& args) {
  using S = WidenedShape<kFormat, T, kRows, kGroups>;
  config.block = S::kThreads;
  config.shared_bytes = S::kSharedBytes;
  launch("widened_gemm", widened_gemm_kernel<kFormat, T, kRows, kGroups>, config, args);
}

}  // namespace quire::cuda::gemm::split
