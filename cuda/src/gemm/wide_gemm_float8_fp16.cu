// A file per pair of types, so that they compile in parallel.
#include "wide_gemm.cuh"

namespace quire::cuda::gemm::wide {

template void launch_kernel<__nv_fp8_e4m3, __half, false, kWeightBox>(LaunchConfig config,
                                                                      const KernelArgs& args);
template void launch_kernel<__nv_fp8_e4m3, __half, true, kWeightBox>(LaunchConfig config,
                                                                     const KernelArgs& args);
template void launch_kernel<__nv_fp8_e4m3, __half, true, kSmallWeightBox>(LaunchConfig config,
                                                                          const KernelArgs& args);

}  // namespace quire::cuda::gemm::wide
