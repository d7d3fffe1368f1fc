// The kernels of launch_paged_attention, each in its own file.
#pragma once

#include "plan.cuh"

namespace quire::cuda::attention {

struct KernelArgs;

// T: of query and output. KV: of the caches, T or Float8. Both run over what the plan found, so a launch
// without work returns at once.

// kFold: folded_heads(); the args' group and num_kv_heads count folded heads.
template <class T, class KV, int kHeadDim, int kFold>
void launch_decode(const KernelArgs& args, cudaStream_t stream);
// kIsPadded: kHeadDim is compute_dim() of the heads' size.
template <class T, class KV, int kHeadDim, bool kIsPadded>
void launch_prefill(const KernelArgs& args, cudaStream_t stream);
// Prompts on wgmma, for head_dim 64, 96 and 128.
template <class T, int kHeadDim>
void launch_prefill_wgmma(const KernelArgs& args, cudaStream_t stream);

}  // namespace quire::cuda::attention
