// Python's names of the kernels for mixtures of experts.
#include "bindings.h"
#include "quire/cuda/moe.h"

namespace quire::bindings {

void bind_moe(py::module_& m) {
  def_kernel<cuda::launch_moe_route>(m);
  def_kernel<cuda::launch_moe_sort>(m);
  def_kernel<cuda::launch_moe_gemm>(m);
  def_kernel<cuda::launch_moe_combine>(m);
}

}  // namespace quire::bindings
