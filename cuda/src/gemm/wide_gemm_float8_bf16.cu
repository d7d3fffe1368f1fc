// A file per pair of types, so that they compile in parallel.
#include "wide_gemm.cuh"

namespace quire::cuda::gemm::wide {

template void launch_kernel<__nv_fp8_e4m3, __nv_bfloat16, false, kWeightBox>(LaunchConfig config,
                                                                             const KernelArgs& args);
template void launch_kernel<__nv_fp8_e4m3, __nv_bfloat16, true, kWeightBox>(LaunchConfig config,
                                                                            const KernelArgs& args);
template void launch_kernel<__nv_fp8_e4m3, __nv_bfloat16, true, kSmallWeightBox>(LaunchConfig config,
                                                                                 const KernelArgs& args);

}  // namespace quire::cuda::gemm::wide
