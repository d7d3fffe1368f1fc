// A file per type, so that they compile in parallel.
#include "skinny_gemm.cuh"

namespace quire::cuda::gemm {

template void launch_kernel<__nv_bfloat16, WeightFormat::kMxfp4>(int padded_rows, LaunchConfig config,
                                                                 KernelArgs args);

}  // namespace quire::cuda::gemm
