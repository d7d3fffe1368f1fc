// A file per pair of types, so that they compile in parallel.
#include "split_gemm.cuh"

namespace quire::cuda::gemm::split {

template void launch_kernel<__nv_fp8_e4m3, __nv_bfloat16, kTileRows, 1>(LaunchConfig config,
                                                                        const KernelArgs& args);
template void launch_kernel<__nv_fp8_e4m3, __nv_bfloat16, kTileRows, 2>(LaunchConfig config,
                                                                        const KernelArgs& args);
template void launch_kernel<__nv_fp8_e4m3, __nv_bfloat16, kSmallTileRows, 1>(LaunchConfig config,
                                                                             const KernelArgs& args);
template void launch_kernel<__nv_fp8_e4m3, __nv_bfloat16, kSmallTileRows, 2>(LaunchConfig config,
                                                                             const KernelArgs& args);

}  // namespace quire::cuda::gemm::split
