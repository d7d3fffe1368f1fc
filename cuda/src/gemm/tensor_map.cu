#include "common/tensor_map.h"
#include "gemm/tensor_map.h"

namespace quire::cuda::gemm {
namespace {

CUtensorMap make_map(CUtensorMapDataType type, int64_t element_bytes, const void* data,
                     std::initializer_list<Dimension> dimensions) {
  constexpr int kMaxDimensions = 5;
  cuuint64_t sizes[kMaxDimensions], strides[kMaxDimensions];
  cuuint32_t box[kMaxDimensions];
  int rank = 0;
  for (const Dimension& dimension : dimensions) {
    sizes[rank] = static_cast<cuuint64_t>(dimension.size);
    box[rank] = static_cast<cuuint32_t>(dimension.box);
    if (rank > 0) strides[rank - 1] = static_cast<cuuint64_t>(dimension.stride * element_bytes);
    ++rank;
  }
  return encode_tensor_map(type, rank, data, sizes, strides, box, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
}

}  // namespace

CUtensorMap make_tensor_map(DType dtype, const void* data, std::initializer_list<Dimension> dimensions) {
  return make_map(
      dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, data,
      dimensions);
}

CUtensorMap make_tensor_map(DType dtype, const void* data, int64_t rows, int64_t columns, int64_t stride,
                            int box_rows) {
  return make_tensor_map(dtype, data, {{columns, 1, kBoxColumns}, {rows, stride, box_rows}});
}

CUtensorMap make_byte_tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                                 int box_rows) {
  return make_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, data,
                  {{columns, 1, kBoxRowBytes}, {rows, stride, box_rows}});
}

}  // namespace quire::cuda::gemm
