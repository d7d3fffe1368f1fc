// A file per pair of types, so that they compile in parallel.
#include "split_gemm.cuh"

namespace quire::cuda::gemm::split {

template void launch_kernel<__nv_bfloat16, Scaling::kRows, kTileRows, 1, 1, false>(LaunchConfig config,
                                                                                   const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kTileRows, 2, 1, false>(LaunchConfig config,
                                                                                   const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kSmallTileRows, 1, 1, false>(
    LaunchConfig config, const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kSmallTileRows, 2, 1, false>(
    LaunchConfig config, const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kFewRows, 1, 1, false>(LaunchConfig config,
                                                                                  const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kFewRows, 2, 1, false>(LaunchConfig config,
                                                                                  const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kSomeRows, 1, 1, false>(LaunchConfig config,
                                                                                   const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kSomeRows, 2, 1, false>(LaunchConfig config,
                                                                                   const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kFewRows, 1, 2, false>(LaunchConfig config,
                                                                                  const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kFewRows, 2, 2, false>(LaunchConfig config,
                                                                                  const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kSomeRows, 1, 2, false>(LaunchConfig config,
                                                                                   const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kSomeRows, 2, 2, false>(LaunchConfig config,
                                                                                   const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kFewRows, 2, 2, true>(LaunchConfig config,
                                                                                 const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kRows, kSomeRows, 2, 2, true>(LaunchConfig config,
                                                                                  const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kTileRows, 1, 1, false>(LaunchConfig config,
                                                                                     const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kTileRows, 2, 1, false>(LaunchConfig config,
                                                                                     const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kSmallTileRows, 1, 1, false>(
    LaunchConfig config, const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kSmallTileRows, 2, 1, false>(
    LaunchConfig config, const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kFewRows, 1, 1, false>(LaunchConfig config,
                                                                                    const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kFewRows, 2, 1, false>(LaunchConfig config,
                                                                                    const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kSomeRows, 1, 1, false>(LaunchConfig config,
                                                                                     const KernelArgs& args);
template void launch_kernel<__nv_bfloat16, Scaling::kBlocks, kSomeRows, 2, 1, false>(LaunchConfig config,
                                                                                     const KernelArgs& args);

}  // namespace quire::cuda::gemm::split
