// The small row-wise layers on the GPU.
//
// Launches overlap the kernels in front of them (cuda/src/common/dependency.cuh). Only weights are read
// before those have ended.
//
// Every launch function throws std::invalid_argument for sizes it does not support and std::runtime_error
// when the launch fails, and can be captured in a CUDA graph. Rows whose pointers and strides are multiples
// of 16 bytes are read 16 bytes at a time, others element by element.
#pragma once

#include "quire/cuda/stream.h"
#include "quire/kernels/layers.h"

namespace quire::cuda {

void launch_norm(const NormParams& params, cudaStream_t stream);
void launch_activate(const ActivateParams& params, cudaStream_t stream);
void launch_quantize_rows(const QuantizeRowsParams& params, cudaStream_t stream);
void launch_scale_and_cap(const ScaleAndCapParams& params, cudaStream_t stream);
void launch_embedding(const EmbeddingParams& params, cudaStream_t stream);
void launch_gather_rows(const GatherRowsParams& params, cudaStream_t stream);

}  // namespace quire::cuda
