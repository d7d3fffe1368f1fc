// Operands of wgmma and mma.sync from weights of four bits, whose scales and zeros lie after them in shared
// memory.
#pragma once

#include "copy_engine.cuh"
#include "kernels.h"
#include "widen.cuh"

namespace quire::cuda::gemm {

// Of a lane's two rows.
template <class T, WeightFormat kFormat>
struct FourBits {
  using Elements = Widen<T, kFormat>;

  const Groups& groups;
  uint32_t row_offset;           // of this lane's first row, in a group's scales
  uint32_t scales[2], zeros[2];  // of the group at hand

  // warp: of the four that have the rows of a load.
  __device__ FourBits(const Groups& groups, int warp)
      : groups(groups), row_offset((warp * 16 + threadIdx.x % 32 / 4) * 2) {
    zeros[0] = zeros[1] = Elements::prepared_zero(8);
  }

  // unit: of columns, in the load at w.
  __device__ void enter_group(uint32_t w, int unit) {
    if ((unit & ((1 << groups.shift) - 1)) != 0) return;
    const uint32_t from = w + kLoadBytes + (unit >> groups.shift) * (kBoxRows * 2) + row_offset;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      scales[half] = load_short(from + half * 16) * 0x00010001u;
      if (groups.has_zeros) {
        zeros[half] = Elements::prepared_zero(load_short(from + groups.box_bytes + half * 16));
      }
    }
  }

  // The j-th 16 columns of a load.
  __device__ void widen(const uint32_t (&words)[4], int j, uint32_t (&operand)[4]) const {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const int half = r % 2, nibble = j % 2 * 2 + r / 2;
      operand[r] =
          multiply_pairs<T>(Elements::number(words[j / 2 * 2 + half], nibble, zeros[half]), scales[half]);
    }
  }
};

}  // namespace quire::cuda::gemm
