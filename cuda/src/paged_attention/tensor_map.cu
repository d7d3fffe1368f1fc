#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "tensor_map.h"

namespace quire::cuda::attention {
namespace {

// Found at run time, so that nothing links against the driver.
PFN_cuTensorMapEncodeTiled_v12000 encode_tiled() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
    if (error != cudaSuccess || status != cudaDriverEntryPointSuccess) {
      throw std::runtime_error("paged attention: the driver has no cuTensorMapEncodeTiled");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  return function;
}

}  // namespace

CUtensorMap encode_cache(const PagedAttentionParams& params, const void* cache, int32_t box_elements,
                         int32_t box_tokens) {
  const PagedAttentionConfig& c = params.config;
  // The caches' size is not known here, and not needed: only blocks of the tables are copied.
  constexpr cuuint64_t kAnySlot = cuuint64_t{1} << 31;
  const cuuint64_t head_bytes = static_cast<cuuint64_t>(c.head_dim) * 2;
  const cuuint64_t slot_bytes = head_bytes * c.num_kv_heads;
  const auto chunks = static_cast<cuuint32_t>(c.head_dim / box_elements);
  const cuuint64_t sizes[5] = {static_cast<cuuint64_t>(box_elements), 8, chunks,
                               static_cast<cuuint64_t>(c.num_kv_heads), kAnySlot / 8};
  const cuuint64_t strides[4] = {slot_bytes, static_cast<cuuint64_t>(box_elements) * 2, head_bytes,
                                 8 * slot_bytes};
  const cuuint32_t box[5] = {static_cast<cuuint32_t>(box_elements), 8, chunks, 1,
                             static_cast<cuuint32_t>(box_tokens / 8)};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode_tiled()(
      &map,
      params.dtype == AttentionDType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      5, const_cast<void*>(cache), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      box_elements == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      head_bytes % 256 == 0 ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("paged attention: cuTensorMapEncodeTiled: error " +
                             std::to_string(static_cast<int>(result)));
  }
  return map;
}

}  // namespace quire::cuda::attention
