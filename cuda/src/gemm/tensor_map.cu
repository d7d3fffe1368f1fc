#include <stdexcept>
#include <string>

#include "common/launch.h"
#include "tensor_map.h"

namespace quire::cuda::gemm {
namespace {

// The driver's function, without linking the driver's library.
decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
  static const auto encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                           &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) {
      throw std::runtime_error("cuTensorMapEncodeTiled: the driver does not have it");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

}  // namespace

CUtensorMap make_tensor_map(DType dtype, const void* data, std::initializer_list<Dimension> dimensions) {
  constexpr int kMaxDimensions = 5;
  CUtensorMap map;
  cuuint64_t sizes[kMaxDimensions], strides[kMaxDimensions];
  cuuint32_t box[kMaxDimensions], steps[kMaxDimensions];
  int rank = 0;
  for (const Dimension& dimension : dimensions) {
    sizes[rank] = static_cast<cuuint64_t>(dimension.size);
    box[rank] = static_cast<cuuint32_t>(dimension.box);
    steps[rank] = 1;
    if (rank > 0) strides[rank - 1] = static_cast<cuuint64_t>(dimension.stride * 2);
    ++rank;
  }
  const CUresult status = tensor_map_encoder()(
      &map, dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      static_cast<cuuint32_t>(rank), const_cast<void*>(data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(status)));
  }
  return map;
}

CUtensorMap make_tensor_map(DType dtype, const void* data, int64_t rows, int64_t columns, int64_t stride,
                            int box_rows) {
  return make_tensor_map(dtype, data, {{columns, 1, kBoxColumns}, {rows, stride, box_rows}});
}

}  // namespace quire::cuda::gemm
