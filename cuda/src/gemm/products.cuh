// Products of a tile of W with x: one step of x's columns after the other, W as it is or widened.
#pragma once

#include "common/mma.cuh"
#include "common/warpgroup.cuh"
#include "shape.cuh"
#include "wgmma.cuh"
#include "widen.cuh"

namespace quire::cuda::gemm {

// For so few rows of x mma.sync is faster than wgmma with an operand in registers.
inline constexpr int kMaxMmaTokens = 32;

// add(w, step, x): the products of step number `step` of a load of W at w, with a load of x at x, both in
// shared memory, which are read when it returns. sums: as wgmma.cuh has accumulators.
template <class T, int kTokens, WeightFormat kFormat>
struct Products {
  using S = Shape<kTokens>;
  using Operands = Widen<T, kFormat>;
  // Of a row of W, in a step.
  static constexpr int kRowBytes = kStepColumns * bits_of(kFormat) / 8;
  static constexpr int kLoads = kRowBytes / 32;

  float sums[kTokens / 2] = {};
  const KernelArgs& a;
  const float* row_scales[2];  // of this lane's rows
  int32_t x_step;              // of k, of the next step
  float2 next_scales;          // of that step, loaded a step ahead
  uint32_t lane_offset;        // of what load_matrices() reads by this lane, in a box

  __device__ Products(const KernelArgs& args, int32_t tile, int32_t first_x_step)
      : a(args), x_step(first_x_step) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp * 16 + lane % 16;
    lane_offset = row * 128 + (lane % 8 ^ lane / 16) * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      row_scales[half] = a.scales + int64_t{row_of_weight(tile, warp, lane / 4, half)} * a.num_scales;
    }
    next_scales = scales_of(x_step);
  }

  // half: 0 or 1, of a warp's 16 rows. Rows that are not there use the last one's scale.
  __device__ int32_t row_of_weight(int32_t tile, int warp, int row, int half) const {
    if (a.silu_mul) return min((tile * kMathWarps + warp) * 8 + row, a.n_out - 1) + half * a.n_out;
    return min((tile * kMathWarps + warp) * 16 + row + half * 8, a.n_out - 1);
  }

  __device__ float2 scales_of(int32_t step) const {
    const int32_t column = min(step, a.num_scales - 1);
    return make_float2(__ldg(row_scales[0] + column), __ldg(row_scales[1] + column));
  }

  // By mma.sync, whose fragments lie as wgmma's do. Everything is loaded at first, and the 16 columns of a
  // load are added up in turns in two places: nothing waits for what was begun just before.
  __device__ void multiply_rows(float (&acc)[kTokens / 2], uint32_t (&words)[kLoads][4], uint32_t x) {
    constexpr int kGroups = kTokens / 8;
    static_assert(Operands::kOperands % 2 == 0);
    const int lane = threadIdx.x % 32;
    const uint32_t first = x + lane % 8 * 128;
    uint32_t columns[kStepColumns / 32][kGroups][4];  // 32 columns of 8 rows of x
#pragma unroll
    for (int i = 0; i < kStepColumns / 32; ++i) {
      const int chunk = i * 32 % kBoxColumns / 8;
#pragma unroll
      for (int c = 0; c < kGroups; ++c) {
        load_matrices(columns[i][c], first + i * 32 / kBoxColumns * S::kXBoxBytes + c * 1024 +
                                         ((chunk + lane / 8) ^ lane % 8) * 16);
      }
    }
    float other[kTokens / 2] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      uint32_t operands[Operands::kOperands][4];
      Operands::run(words[i], operands);
#pragma unroll
      for (int j = 0; j < Operands::kOperands; ++j) {
        const int k = i * Operands::kOperands + j;
#pragma unroll
        for (int c = 0; c < kGroups; ++c) {
          const uint32_t (&b)[4] = columns[k / 2][c];
          Element<T>::mma(group_of(j % 2 == 0 ? acc : other, c), operands[j], b[k % 2 * 2], b[k % 2 * 2 + 1]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) acc[i] += other[i];
  }
  __device__ static float (&group_of(float (&acc)[kTokens / 2], int c))[4] {
    return reinterpret_cast<float (&)[4]>(acc[4 * c]);
  }

  __device__ void add(uint32_t w, int step, uint32_t x) {
    const float2 scales = next_scales;
    if (a.num_scales > 1) next_scales = scales_of(++x_step);
    const uint32_t from = w + (step * kRowBytes / 128) * kBoxBytes + lane_offset;
    uint32_t words[kLoads][4];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) load_matrices(words[i], from ^ (step * kRowBytes % 128 + i * 32));
    float acc[kTokens / 2] = {};
    if constexpr (kTokens <= kMaxMmaTokens) {
      multiply_rows(acc, words, x);
    } else {
      uint32_t operands[kLoads][Operands::kOperands][4];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        Operands::run(words[i], operands[i]);
        begin_products();
#pragma unroll
        for (int j = 0; j < Operands::kOperands; ++j) {
          const int k = (i * Operands::kOperands + j) * 16;
          WgmmaOfRegisters<T, kTokens>::run(
              acc, operands[i][j], operand_at(x + k / kBoxColumns * S::kXBoxBytes + k % kBoxColumns * 2));
        }
        commit_products();
      }
      wait_products<0>();
    }
    const float first = scales.x * Operands::kFactor, second = scales.y * Operands::kFactor;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[i] = fmaf(acc[i], i % 4 < 2 ? first : second, sums[i]);
  }
};

// 16 bits: both operands stay in shared memory.
template <class T, int kTokens>
struct Products<T, kTokens, WeightFormat::k16Bits> {
  using S = Shape<kTokens>;

  float sums[kTokens / 2] = {};

  __device__ Products(const KernelArgs&, int32_t, int32_t) {}

  __device__ void add(uint32_t w, int, uint32_t x) {
    begin_products();
#pragma unroll
    for (int box = 0; box < 2; ++box) {
#pragma unroll
      for (int k = 0; k < kBoxColumns; k += 16) {
        Wgmma<T, kTokens>::run(sums, operand_at(w + box * kBoxBytes + k * 2),
                               operand_at(x + box * S::kXBoxBytes + k * 2));
      }
    }
    commit_products();
    wait_products<0>();
  }
};

}  // namespace quire::cuda::gemm
