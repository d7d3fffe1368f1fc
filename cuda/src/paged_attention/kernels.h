// The kernels of launch_paged_attention, each in its own file.
#pragma once

#include "plan.cuh"

namespace quire::cuda::attention {

struct KernelArgs;

// Both run over what the plan found, so a launch without work returns at once.
template <class T, int kHeadDim>
void launch_decode(const KernelArgs& args, cudaStream_t stream);
template <class T, int kHeadDim>
void launch_prefill(const KernelArgs& args, cudaStream_t stream);
// The same on wgmma, for head_dim 64, 96 and 128.
template <class T, int kHeadDim>
void launch_prefill_wgmma(const KernelArgs& args, cudaStream_t stream);

}  // namespace quire::cuda::attention
