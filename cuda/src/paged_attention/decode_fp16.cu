#include "decode.cuh"

namespace quire::cuda::attention {

template void launch_decode<__half, __half, 64>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, __half, 96>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, __half, 128>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, __half, 256>(const KernelArgs&, cudaStream_t);

}  // namespace quire::cuda::attention
