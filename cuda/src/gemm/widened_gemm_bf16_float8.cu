// A file per type, so that they compile in parallel.
#include "widened_gemm.cuh"

namespace quire::cuda::gemm::split {

template void launch_widened_kernel<WeightFormat::kFloat8, __nv_bfloat16, kTileRows, 1>(
    LaunchConfig config, const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kFloat8, __nv_bfloat16, kTileRows, 2>(
    LaunchConfig config, const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kFloat8, __nv_bfloat16, kSmallTileRows, 1>(
    LaunchConfig config, const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kFloat8, __nv_bfloat16, kSmallTileRows, 2>(
    LaunchConfig config, const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kFloat8, __nv_bfloat16, kSomeRows, 1>(
    LaunchConfig config, const WidenedArgs& args);
template void launch_widened_kernel<WeightFormat::kFloat8, __nv_bfloat16, kSomeRows, 2>(
    LaunchConfig config, const WidenedArgs& args);

}  // namespace quire::cuda::gemm::split
