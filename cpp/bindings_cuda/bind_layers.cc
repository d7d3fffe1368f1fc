// Python's names of the layers beside attention, and of the cache write.
#include "bindings.h"
#include "bindings/kernel_fields.h"
#include "quire/cuda/block_table.h"
#include "quire/cuda/copy_blocks.h"
#include "quire/cuda/layers.h"
#include "quire/cuda/rope_and_cache.h"

namespace quire::bindings {
namespace {

void def_rope_and_cache(py::module_& m) {
  using P = cuda::RopeAndCacheParams;
  const auto launch = [](Launch<P>& given) {
    set_key_and_value(given, size_of(given.dtype));
    cuda::launch_rope_and_cache(given, static_cast<cudaStream_t>(given.stream));
  };
  def_kernel<Launch<P>>(
      m, "rope_and_cache", launch,
      fields(rope_and_cache_fields<P>(), stream<P>(), field<&P::kv_dtype>("kv_dtype", 0),
             field<&P::k_scale>("k_scale", 1.0f), field<&P::v_scale>("v_scale", 1.0f), rope_norm_fields<P>(),
             field<&P::places_are_settled>("places_are_settled", false)));
}

auto block_table_update_fields() {
  using P = cuda::BlockTableUpdateParams;
  return fields(field<&P::updates>("updates"), field<&P::num_updates>("num_updates"),
                field<&P::max_updates>("max_updates"), field<&P::block_tables>("block_tables"),
                field<&P::num_entries>("num_entries"), stream<P>());
}

auto copy_blocks_fields() {
  using P = cuda::CopyBlocksParams;
  return fields(field<&P::copies>("copies"), field<&P::num_copies>("num_copies"), field<&P::cache>("cache"),
                field<&P::num_blocks>("num_blocks"), field<&P::block_bytes>("block_bytes"), stream<P>());
}

}  // namespace

void bind_layers(py::module_& m) {
  def_rope_and_cache(m);
  def_kernel<cuda::launch_rms_norm>(m);
  def_kernel<cuda::launch_silu_mul>(m);
  def_kernel<cuda::launch_embedding>(m);
  def_kernel<cuda::launch_gather_rows>(m);
  def_launch(m, "update_block_tables", cuda::launch_block_table_update, block_table_update_fields());
  def_launch(m, "copy_blocks", cuda::launch_copy_blocks, copy_blocks_fields());
}

}  // namespace quire::bindings
