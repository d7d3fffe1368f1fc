// Paged attention on the GPU.
#pragma once

#include <cstddef>

#include "quire/cuda/stream.h"
#include "quire/kernels/paged_attention.h"

namespace quire::cuda {

size_t paged_attention_workspace_bytes(const PagedAttentionConfig& config);

// Both throw std::invalid_argument for sizes that are not supported and std::runtime_error when a launch
// fails; the arrays are trusted.
void launch_paged_attention_plan(const PagedAttentionPlanParams& params, cudaStream_t stream);
void launch_paged_attention(const PagedAttentionParams& params, cudaStream_t stream);

}  // namespace quire::cuda
