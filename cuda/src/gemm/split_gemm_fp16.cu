// A file per pair of types, so that they compile in parallel.
#include "split_gemm.cuh"

namespace quire::cuda::gemm::split {

template void launch_kernel<__half, Scaling::kNone, kTileRows, 1, 1, false>(LaunchConfig config,
                                                                            const KernelArgs& args);
template void launch_kernel<__half, Scaling::kNone, kTileRows, 2, 1, false>(LaunchConfig config,
                                                                            const KernelArgs& args);
template void launch_kernel<__half, Scaling::kNone, kSmallTileRows, 1, 1, false>(LaunchConfig config,
                                                                                 const KernelArgs& args);
template void launch_kernel<__half, Scaling::kNone, kSmallTileRows, 2, 1, false>(LaunchConfig config,
                                                                                 const KernelArgs& args);

}  // namespace quire::cuda::gemm::split
