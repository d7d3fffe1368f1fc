// Writes to the KV cache and to the block tables on the GPU.
//
// Launches, but for copy_blocks, overlap the kernels in front of them (cuda/src/common/dependency.cuh), and
// write after those have ended. rope_and_cache reads cos, sin, q_norm and k_norm, and with places_are_settled
// positions and slot_mapping, before. Its pointers must be multiples of 16 bytes.
//
// All throw std::invalid_argument for sizes they do not support and std::runtime_error when the launch fails.
#pragma once

#include "quire/cuda/stream.h"
#include "quire/kernels/kv_cache.h"

namespace quire::cuda {

void launch_rope_and_cache(const RopeAndCacheParams& params, cudaStream_t stream);
void launch_block_table_update(const BlockTableUpdateParams& params, cudaStream_t stream);
void launch_copy_blocks(const CopyBlocksParams& params, cudaStream_t stream);

}  // namespace quire::cuda
