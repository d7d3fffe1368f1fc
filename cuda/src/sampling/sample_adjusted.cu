// The build for calls with penalties, min_p or biases. A file of its own: it compiles for a
// minute.
#include "sample_kernel.cuh"

namespace quire::cuda::sampling {

void launch_adjusted(const SampleParams& p, cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    launch("sample", sample_kernel<T, 4, true>, launch_config(p, stream), p);
  });
}

}  // namespace quire::cuda::sampling
