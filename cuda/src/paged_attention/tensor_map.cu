#include "common/tensor_map.h"
#include "paged_attention/tensor_map.h"

namespace quire::cuda::attention {

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
  return encode_tensor_map(
      params.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      5, cache, sizes, strides, box,
      box_elements == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      head_bytes % 256 == 0 ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

}  // namespace quire::cuda::attention
