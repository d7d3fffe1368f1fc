// How the copy engine sees a KV cache.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "quire/cuda/paged_attention.h"

namespace quire::cuda::attention {

// The cache as [slot, kv head, element], slot = block * block_size + offset; a box is box_tokens slots of
// box_elements elements of one head, in shared memory rows of box_elements * 2 bytes (128 or 64), swizzled.
// Throws std::runtime_error where the driver refuses.
CUtensorMap encode_cache(const PagedAttentionParams& params, const void* cache, int32_t box_elements,
                         int32_t box_tokens);

}  // namespace quire::cuda::attention
