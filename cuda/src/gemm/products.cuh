// Products of a tile of W with x: one step of x's columns after the other, W as it is or widened.
#pragma once

#include "common/mma.cuh"
#include "common/warpgroup.cuh"
#include "shape.cuh"
#include "wgmma.cuh"
#include "widen.cuh"

namespace quire::cuda::gemm {

// A step of x for mma.sync, whose fragments lie as wgmma's do and which is faster than wgmma with an operand
// in registers. Everything is loaded at first, and the 16 columns of an operand are added up in turns in two
// places: nothing waits for what was begun just before.
template <class T, int kTokens>
struct RowsOfX {
  static constexpr int kGroups = kTokens / 8;
  uint32_t columns[kStepColumns / 32][kGroups][4];  // 32 columns of 8 rows of x

  __device__ void load(uint32_t x) {
    const int lane = threadIdx.x % 32;
    const uint32_t first = x + lane % 8 * 128;
#pragma unroll
    for (int i = 0; i < kStepColumns / 32; ++i) {
      const int chunk = i * 32 % kBoxColumns / 8;
#pragma unroll
      for (int c = 0; c < kGroups; ++c) {
        load_matrices(columns[i][c], first + i * 32 / kBoxColumns * Shape<kTokens>::kXBoxBytes + c * 1024 +
                                         ((chunk + lane / 8) ^ lane % 8) * 16);
      }
    }
  }

  // The k-th 16 columns.
  __device__ void multiply(float (&acc)[kTokens / 2], const uint32_t (&operand)[4], int k) const {
#pragma unroll
    for (int c = 0; c < kGroups; ++c) {
      const uint32_t (&b)[4] = columns[k / 2][c];
      Element<T>::mma(reinterpret_cast<float (&)[4]>(acc[4 * c]), operand, b[k % 2 * 2], b[k % 2 * 2 + 1]);
    }
  }
};

// load(w, step, x): what a lane needs of step number `step` of a load of W at w and of a step of x at x, both
// in shared memory. add(loaded, w, step): its products; W and x are read when it returns. The next step is
// loaded before this one is added. sums: as wgmma.cuh has accumulators.
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
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    lane_offset = matrices_at(warp, lane);
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

  struct Loaded {
    uint32_t words[kLoads][4];
    RowsOfX<T, kTokens> rows;
  };

  __device__ void load(Loaded& to, uint32_t w, int step, uint32_t x) const {
    const uint32_t from = w + (step * kRowBytes / 128) * kBoxBytes + lane_offset;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) load_matrices(to.words[i], from ^ (step * kRowBytes % 128 + i * 32));
    to.rows.load(x);
  }

  __device__ void add(const Loaded& loaded, uint32_t, int) {
    static_assert(Operands::kOperands % 2 == 0);
    const float2 scales = next_scales;
    if (a.num_scales > 1) next_scales = scales_of(++x_step);
    float acc[2][kTokens / 2] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      uint32_t operands[Operands::kOperands][4];
      Operands::run(loaded.words[i], operands);
#pragma unroll
      for (int j = 0; j < Operands::kOperands; ++j) {
        loaded.rows.multiply(acc[j % 2], operands[j], i * Operands::kOperands + j);
      }
    }
    const float first = scales.x * Operands::kFactor, second = scales.y * Operands::kFactor;
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      sums[i] = fmaf(acc[0][i] + acc[1][i], i % 4 < 2 ? first : second, sums[i]);
    }
  }
};

// Four bits. Sums of a whole step of one group are scaled in float32; where groups are smaller, each element
// is scaled while it is widened.
template <class T, int kTokens, WeightFormat kFormat>
  requires(kIsFourBit<kFormat>)
struct Products<T, kTokens, kFormat> {
  using S = Shape<kTokens>;
  using Rows = RowsOfX<T, kTokens>;
  using Elements = Widen<T, kFormat>;
  static constexpr int kRowBytes = kStepColumns / 2;  // of a row of W, in a step
  static constexpr int kUnits = kStepColumns / kGroupUnit;
  static constexpr int kStepShift = 2;  // of groups of a step's columns
  static constexpr int kOperands = kStepColumns / 16;
  static_assert(kGroupUnit << kStepShift == kStepColumns);

  float sums[kTokens / 2] = {};
  const Groups& groups;
  uint32_t lane_offset;  // of what load_matrices() reads by this lane, in a box
  uint32_t row_offset;   // of this lane's first row, in a group's scales

  __device__ Products(const KernelArgs& args, int32_t, int32_t) : groups(args.groups) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    lane_offset = matrices_at(warp, lane);
    row_offset = (warp * 16 + lane / 4) * 2;
  }

  // What this lane's two rows have in a group.
  struct Group {
    uint32_t scales[2], zeros[2];
  };

  // unit: of columns, in the load at w.
  __device__ Group group_of(uint32_t w, int unit) const {
    const uint32_t from = w + kLoadBytes + (unit >> groups.shift) * (kBoxRows * 2) + row_offset;
    Group group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      group.scales[half] = load_short(from + half * 16);
      const uint32_t zero = groups.has_zeros ? load_short(from + groups.box_bytes + half * 16) : 8;
      group.zeros[half] = Elements::prepared_zero(zero);
    }
    return group;
  }

  // Before they are scaled. The j-th 16 columns of a step.
  __device__ static void numbers(const uint32_t (&words)[2][4], int j, const Group& group,
                                 uint32_t (&operand)[4]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int half = r % 2, nibble = j % 2 * 2 + r / 2;
      operand[r] = Elements::number(words[j / 4][j % 4 / 2 * 2 + half], nibble, group.zeros[half]);
    }
  }
  __device__ static void elements(const uint32_t (&words)[2][4], int j, const Group& group,
                                  uint32_t (&operand)[4]) {
    numbers(words, j, group, operand);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      operand[r] = multiply_pairs<T>(operand[r], group.scales[r % 2] * 0x00010001u);
    }
  }

  struct Loaded {
    uint32_t words[2][4];  // of 64 columns each
    Group group;           // of the first unit
    Rows rows;
  };

  __device__ void load(Loaded& to, uint32_t w, int step, uint32_t x) const {
    const uint32_t from = w + step * kRowBytes / 128 * kBoxBytes + lane_offset;
#pragma unroll
    for (int i = 0; i < 2; ++i) load_matrices(to.words[i], from ^ (step * kRowBytes % 128 + i * 32));
    to.group = group_of(w, step * kUnits);
    to.rows.load(x);
  }

  __device__ void add(const Loaded& loaded, uint32_t w, int step) {
    if (kFormat == WeightFormat::kInt4 && groups.shift >= kStepShift) {
      add_group(loaded);
    } else {
      add_units(loaded, w, step * kUnits);
    }
  }

  __device__ void add_group(const Loaded& loaded) {
    const Group& group = loaded.group;
    float acc[2][kTokens / 2] = {};
#pragma unroll
    for (int j = 0; j < kOperands; ++j) {
      uint32_t operand[4];
      numbers(loaded.words, j, group, operand);
      loaded.rows.multiply(acc[j % 2], operand, j);
    }
    const float first = scale_of(group.scales[0]), second = scale_of(group.scales[1]);
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      sums[i] = fmaf(acc[0][i] + acc[1][i], i % 4 < 2 ? first : second, sums[i]);
    }
  }
  __device__ static float scale_of(uint32_t bits) {
    const uint16_t scale = static_cast<uint16_t>(bits);
    return to_float(reinterpret_cast<const T&>(scale));
  }

  __device__ void add_units(const Loaded& loaded, uint32_t w, int first_unit) {
    float other[kTokens / 2] = {};
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      const Group group = unit == 0 ? loaded.group : group_of(w, first_unit + unit);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t operand[4];
        elements(loaded.words, unit * 2 + j, group, operand);
        loaded.rows.multiply(j == 0 ? sums : other, operand, unit * 2 + j);
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) sums[i] += other[i];
  }
};

// 16 bits: both operands stay in shared memory.
template <class T, int kTokens>
struct Products<T, kTokens, WeightFormat::k16Bits> {
  using S = Shape<kTokens>;

  float sums[kTokens / 2] = {};

  __device__ Products(const KernelArgs&, int32_t, int32_t) {}

  struct Loaded {
    uint32_t w, x;
  };

  __device__ void load(Loaded& to, uint32_t w, int, uint32_t x) const { to = {w, x}; }

  __device__ void add(const Loaded& loaded, uint32_t, int) {
    begin_products();
#pragma unroll
    for (int box = 0; box < 2; ++box) {
#pragma unroll
      for (int k = 0; k < kBoxColumns; k += 16) {
        Wgmma<T, kTokens>::run(sums, operand_at(loaded.w + box * kBoxBytes + k * 2),
                               operand_at(loaded.x + box * S::kXBoxBytes + k * 2));
      }
    }
    commit_products();
    wait_products<0>();
  }
};

}  // namespace quire::cuda::gemm
