// A file per type, so that they compile in parallel.
#include "widened_gemm.cuh"

namespace quire::cuda::gemm::split {

template void launch_widened_kernel<WeightFormat::kInt4, __half, kTileRows, 1>(LaunchConfig config,
                                                                               const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kInt4, __half, kTileRows, 2>(LaunchConfig config,
                                                                               const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kInt4, __half, kSmallTileRows, 1>(LaunchConfig config,
                                                                                    const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kInt4, __half, kSmallTileRows, 2>(LaunchConfig config,
                                                                                    const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kInt4, __half, kSomeRows, 1>(LaunchConfig config,
                                                                               const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kInt4, __half, kSomeRows, 2>(LaunchConfig config,
                                                                               const WidenedArgs& args);

}  // namespace quire::cuda::gemm::split
