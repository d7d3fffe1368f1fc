// Python's names of paged attention: the sizes, the plan of a step, and the call of a layer.
#include "bindings.h"
#include "quire/cuda/paged_attention.h"

namespace quire::bindings {

void bind_attention(py::module_& m) {
  def_settings<PagedAttentionConfig>(m);
  m.def("paged_attention_workspace_bytes", &cuda::paged_attention_workspace_bytes, py::arg("config"));
  def_kernel<cuda::launch_paged_attention_plan>(m);
  def_kernel<cuda::launch_paged_attention>(m);
}

}  // namespace quire::bindings
