// The sampler and what goes with it on the GPU. Every launch function throws std::invalid_argument for sizes
// it does not support and std::runtime_error when the launch fails, and can be captured in a CUDA graph.
#pragma once

#include "quire/cuda/stream.h"
#include "quire/kernels/sampling.h"

namespace quire::cuda {

void launch_sample(const SampleParams& params, cudaStream_t stream);
void launch_token_counts(const TokenCountsParams& params, cudaStream_t stream);
void launch_logprobs(const LogprobsParams& params, cudaStream_t stream);

}  // namespace quire::cuda
