// Descriptions of tensors for the copy engine.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <initializer_list>

#include "quire/kernels/dtype.h"

namespace quire::cuda::gemm {

inline constexpr int kBoxRowBytes = 128;              // of a row of a box: the swizzle's width
inline constexpr int kBoxColumns = kBoxRowBytes / 2;  // elements of 16 bits

struct Dimension {
  int64_t size;
  int64_t stride;  // elements; 1 in the first dimension
  int box;
};

// 16-bit elements in boxes with the 128-byte swizzle; up to 5 dimensions. Throws std::runtime_error.
CUtensorMap make_tensor_map(DType dtype, const void* data, std::initializer_list<Dimension> dimensions);

// [rows, columns] of 16-bit elements, rows `stride` elements apart, in boxes of box_rows x kBoxColumns with
// the 128-byte swizzle.
CUtensorMap make_tensor_map(DType dtype, const void* data, int64_t rows, int64_t columns, int64_t stride,
                            int box_rows);

// The same of bytes, in boxes of box_rows x kBoxRowBytes.
CUtensorMap make_byte_tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                                 int box_rows);

}  // namespace quire::cuda::gemm
