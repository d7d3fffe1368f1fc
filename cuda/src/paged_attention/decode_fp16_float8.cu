#include "decode.cuh"

namespace quire::cuda::attention {

template void launch_decode<__half, Float8, 64>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, Float8, 96>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, Float8, 128>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, Float8, 256>(const KernelArgs&, cudaStream_t);

}  // namespace quire::cuda::attention
