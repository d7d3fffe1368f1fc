// Copies of whole KV blocks, in every layer: copy on write.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace quire::cuda {

// cache[copies[i][1]] = cache[copies[i][0]] for i < num_copies. No destination may be a source, or twice a
// destination. A copy of or to a block outside the cache is skipped. Not to be captured:
// launched only in front of the steps that have copies. Waits for the kernels in front of it.
struct CopyBlocksParams {
  const int32_t* copies = nullptr;  // [num_copies, 2]: source, destination; 8-byte aligned
  int32_t num_copies = 0;
  void* cache = nullptr;  // [num_blocks, block_bytes]: keys and values of all layers; 16-byte aligned
  int32_t num_blocks = 0;
  int64_t block_bytes = 0;  // multiple of 16
};

// Throws std::invalid_argument for sizes it does not support and std::runtime_error when the launch fails.
void launch_copy_blocks(const CopyBlocksParams& params, cudaStream_t stream);

}  // namespace quire::cuda
