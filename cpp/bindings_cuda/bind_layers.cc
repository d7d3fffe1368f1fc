// Python's names of the layers beside attention, and of what writes the cache and the block tables.
#include "bindings.h"
#include "quire/cuda/kv_cache.h"
#include "quire/cuda/layers.h"

namespace quire::bindings {

void bind_layers(py::module_& m) {
  def_kernel<cuda::launch_norm>(m);
  def_kernel<cuda::launch_activate>(m);
  def_kernel<cuda::launch_quantize_rows>(m);
  def_kernel<cuda::launch_scale_and_cap>(m);
  def_kernel<cuda::launch_embedding>(m);
  def_kernel<cuda::launch_gather_rows>(m);
  def_kernel<cuda::launch_rope_and_cache>(m);
  def_kernel<cuda::launch_block_table_update>(m);
  def_kernel<cuda::launch_copy_blocks>(m);
}

}  // namespace quire::bindings
