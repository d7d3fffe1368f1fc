#include "decode.cuh"

namespace quire::cuda::attention {

template void launch_decode<__nv_bfloat16, __nv_bfloat16, 64, 1>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, __nv_bfloat16, 64, 2>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, __nv_bfloat16, 96, 1>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, __nv_bfloat16, 128, 1>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, __nv_bfloat16, 256, 1>(const KernelArgs&, cudaStream_t);

}  // namespace quire::cuda::attention
