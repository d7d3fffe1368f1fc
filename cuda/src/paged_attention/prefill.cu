// Prompts of the usual head sizes.
#include "prefill.cuh"

namespace quire::cuda::attention {

#define QUIRE_INSTANTIATE(T, KV)                                                    \
  template void launch_prefill<T, KV, 64, false>(const KernelArgs&, cudaStream_t);  \
  template void launch_prefill<T, KV, 96, false>(const KernelArgs&, cudaStream_t);  \
  template void launch_prefill<T, KV, 128, false>(const KernelArgs&, cudaStream_t); \
  template void launch_prefill<T, KV, 256, false>(const KernelArgs&, cudaStream_t)

QUIRE_INSTANTIATE(__nv_bfloat16, __nv_bfloat16);
QUIRE_INSTANTIATE(__nv_bfloat16, Float8);
QUIRE_INSTANTIATE(__half, __half);
QUIRE_INSTANTIATE(__half, Float8);

#undef QUIRE_INSTANTIATE

}  // namespace quire::cuda::attention
