// What the launches of the GEMMs with both operands in shared memory check, describe and dispatch alike.
#pragma once

#include <algorithm>

#include "common/dispatch.h"
#include "quire/kernels/gemm.h"
#include "tensor_map.h"

namespace quire::cuda::gemm {

// Elements of x and W in a row of a box.
inline int step_columns(const WideGemmWeight& w) { return w.scale != nullptr ? kBoxRowBytes : kBoxColumns; }

// [rows, k] of x's and W's type, rows `stride` elements apart (of one row: any), in boxes of box_rows.
inline CUtensorMap make_operand_map(const WideGemmWeight& w, const void* data, int64_t rows, int64_t stride,
                                    int box_rows) {
  stride = std::max(stride, w.k);
  return w.scale != nullptr ? make_byte_tensor_map(data, rows, w.k, stride, box_rows)
                            : make_tensor_map(w.dtype, data, rows, w.k, stride, box_rows);
}

// x and out, of a kernel's Params, of k and n_out columns. vector: of x's elements, 16 bytes.
template <class Params>
void check_rows(const Params& p, int64_t k, int64_t n_out, int64_t vector) {
  if (!is_aligned(p.x, 16)) throw std::invalid_argument("x: must be 16-byte aligned");
  if (!is_aligned(p.out, 16)) throw std::invalid_argument("out: must be 16-byte aligned");
  if (p.stride_x % vector != 0) {
    refuse("stride_x", std::to_string(p.stride_x), "multiples of " + std::to_string(vector));
  }
  if (p.stride_out % 8 != 0) refuse("stride_out", std::to_string(p.stride_out), "multiples of 8");
  check_range("stride_x", p.stride_x, p.num_rows == 1 ? 0 : k, INT32_MAX);
  check_range("stride_out", p.stride_out, p.num_rows == 1 ? 0 : n_out, INT32_MAX);
}

// x, out and x_scale, of a kernel's Params.
template <class Params>
void check_tensors(const Params& p) {
  const WideGemmWeight& w = *p.weight;
  check_rows(p, w.k, w.silu_mul ? w.n / 2 : w.n, w.scale != nullptr ? 16 : 8);
  if ((p.x_scale == nullptr) != (w.scale == nullptr)) {
    refuse("x_scale", p.x_scale == nullptr ? "none" : "scales",
           w.scale == nullptr ? "none: the weight has none" : "a scale per row: the weight has scales");
  }
}

}  // namespace quire::cuda::gemm
