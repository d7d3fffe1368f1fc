// Descriptions of matrices for the copy engine.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "quire/cuda/dtype.h"

namespace quire::cuda::gemm {

inline constexpr int kBoxColumns = 64;  // elements of 16 bits: 128 bytes

struct Dimension {
  int64_t size;
  int64_t stride;  // elements; of the first dimension it is 1
  int box;
};

// Up to five dimensions of 16-bit elements, with the 128-byte swizzle. Throws std::runtime_error.
CUtensorMap make_tensor_map(DType dtype, const void* data, const Dimension* dimensions, int num_dimensions);

template <int kNumDimensions>
CUtensorMap make_tensor_map(DType dtype, const void* data, const Dimension (&dimensions)[kNumDimensions]) {
  return make_tensor_map(dtype, data, dimensions, kNumDimensions);
}

// [rows, columns], rows `stride` elements apart, in boxes of box_rows x kBoxColumns.
inline CUtensorMap make_tensor_map(DType dtype, const void* data, int64_t rows, int64_t columns,
                                   int64_t stride, int box_rows) {
  return make_tensor_map(dtype, data, {{columns, 1, kBoxColumns}, {rows, stride, box_rows}});
}

}  // namespace quire::cuda::gemm
