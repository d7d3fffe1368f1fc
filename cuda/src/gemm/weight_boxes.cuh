// Where the copies of a weight begin that make_skinny_gemm_weight() describes. row: of the tiles' rows, in
// which gate and up take turns with silu_mul.
#pragma once

#include "kernels.h"

namespace quire::cuda::gemm {

// column: in elements of 16 bits.
__device__ inline int4 weight_box_at(bool silu_mul, int32_t row, int32_t column) {
  return silu_mul ? make_int4(column, 0, 0, row / 16) : make_int4(column, row, 0, 0);
}

// Of a load of W, two boxes.
__device__ inline int4 groups_at(const Groups& groups, bool silu_mul, int32_t row, int32_t load) {
  const int32_t group = load * kGroupUnits >> groups.shift;
  return silu_mul ? make_int4(0, 0, row / 16, group) : make_int4(row, group, 0, 0);
}

}  // namespace quire::cuda::gemm
