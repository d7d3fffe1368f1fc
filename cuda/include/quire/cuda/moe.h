// Mixtures of experts on the GPU. Launches overlap the kernels before them, and can be captured in a CUDA
// graph. Each throws std::invalid_argument for sizes that it does not support.
#pragma once

#include "quire/cuda/stream.h"
#include "quire/kernels/moe.h"

namespace quire::cuda {

void launch_moe_route(const MoeRouteParams& params, cudaStream_t stream);
void launch_moe_sort(const MoeSortParams& params, cudaStream_t stream);
void launch_moe_gemm(const MoeGemmParams& params, cudaStream_t stream);
void launch_moe_combine(const MoeCombineParams& params, cudaStream_t stream);

}  // namespace quire::cuda
