// How the copy engine sees a KV cache.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "quire/cuda/paged_attention.h"

namespace quire::cuda::attention {

// The cache as [slot / 8, kv head, chunk of the head, slot % 8, element of the chunk], slot = block *
// block_size
// + offset; a chunk is box_elements elements. A box is one head of box_tokens slots: in shared memory
// [slot / 8][chunk][slot % 8] rows of box_elements * 2 bytes (128 or 64), swizzled. One copy for each cache
// block matters: the number of copies that a warp can start is what bounds them, not their bytes. Throws
// std::runtime_error where the driver refuses.
CUtensorMap encode_cache(const PagedAttentionParams& params, const void* cache, int32_t box_elements,
                         int32_t box_tokens);

}  // namespace quire::cuda::attention
