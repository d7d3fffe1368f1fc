#include "decode.cuh"

namespace quire::cuda::attention {

template void launch_decode<__nv_bfloat16, Float8, 64, 1>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, Float8, 64, 2>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, Float8, 96, 1>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, Float8, 128, 1>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, Float8, 256, 1>(const KernelArgs&, cudaStream_t);

}  // namespace quire::cuda::attention
