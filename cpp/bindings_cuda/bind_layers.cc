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
    set_key_and_value(given, cuda::size_of(given.dtype));
    cuda::launch_rope_and_cache(given, given.stream);
  };
  def_kernel<Launch<P>>(
      m, "rope_and_cache", launch,
      fields(rope_and_cache_fields<P>(), stream<P>(), field<&P::kv_dtype>("kv_dtype", 0),
             field<&P::k_scale>("k_scale", 1.0f), field<&P::v_scale>("v_scale", 1.0f), rope_norm_fields<P>(),
             field<&P::places_are_settled>("places_are_settled", false)));
}

// The two tensors of a call, by their fields.
struct GatherRows : cuda::GatherRowsParams {
  const void *x = nullptr, *x2 = nullptr;
  int64_t stride_x = 0, stride_x2 = 0;
  int32_t width = 0, width2 = 0;
  void *out = nullptr, *out2 = nullptr;
};

void def_gather_rows(py::module_& m) {
  using P = GatherRows;
  const auto launch = [](Launch<P>& given) {
    given.first = {given.x, given.stride_x, given.width, given.out};
    given.second = {given.x2, given.stride_x2, given.width2, given.out2};
    cuda::launch_gather_rows(given, given.stream);
  };
  def_kernel<Launch<P>>(
      m, "gather_rows", launch,
      fields(field<&P::dtype>("dtype"), field<&P::num_rows>("num_rows"), field<&P::num_x_rows>("num_x_rows"),
             field<&P::indices>("indices"), field<&P::x>("x"), field<&P::stride_x>("stride_x"),
             field<&P::width>("width"), field<&P::out>("out"), stream<P>(), field<&P::x2>("x2", 0),
             field<&P::stride_x2>("stride_x2", 0), field<&P::width2>("width2", 0),
             field<&P::out2>("out2", 0)));
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
  using RmsNorm = cuda::RmsNormParams;
  def_launch(
      m, "rms_norm", cuda::launch_rms_norm,
      fields(rms_norm_fields<RmsNorm>(), stream<RmsNorm>(), field<&RmsNorm::out_scale>("out_scale", 0)));
  using SiluMul = cuda::SiluMulParams;
  def_launch(
      m, "silu_mul", cuda::launch_silu_mul,
      fields(silu_mul_fields<SiluMul>(), stream<SiluMul>(), field<&SiluMul::out_scale>("out_scale", 0)));
  using Embedding = cuda::EmbeddingParams;
  def_launch(m, "embedding", cuda::launch_embedding,
             fields(embedding_fields<Embedding>(), stream<Embedding>(),
                    field<&Embedding::last_token_ids>("last_token_ids", 0),
                    field<&Embedding::num_last_token_ids>("num_last_token_ids", 0)));
  def_gather_rows(m);
  def_launch(m, "update_block_tables", cuda::launch_block_table_update, block_table_update_fields());
  def_launch(m, "copy_blocks", cuda::launch_copy_blocks, copy_blocks_fields());
}

}  // namespace quire::bindings
