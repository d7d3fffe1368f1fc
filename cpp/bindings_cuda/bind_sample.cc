// Python's names of the sampler and of what goes with it.
#include "bindings.h"
#include "quire/cuda/sampling.h"

namespace quire::bindings {

void bind_sample(py::module_& m) {
  def_kernel<cuda::launch_sample>(m);
  def_kernel<cuda::launch_token_counts>(m);
  def_kernel<cuda::launch_logprobs>(m);
}

}  // namespace quire::bindings
