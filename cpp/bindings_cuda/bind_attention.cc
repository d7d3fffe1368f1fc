// Python's names of paged attention: the sizes, the plan of a step, and the call of a layer.
#include "bindings.h"
#include "quire/cuda/paged_attention.h"

namespace quire::bindings {
namespace {

auto config_fields() {
  using C = cuda::PagedAttentionConfig;
  return fields(field<&C::num_q_heads>("num_q_heads"), field<&C::num_kv_heads>("num_kv_heads"),
                field<&C::head_dim>("head_dim"), field<&C::max_num_reqs>("max_num_reqs"),
                field<&C::max_num_tokens>("max_num_tokens"), field<&C::max_seq_len>("max_seq_len"),
                field<&C::num_sms>("num_sms"), field<&C::split_keys>("split_keys", 0),
                field<&C::window>("window", 0));
}

auto plan_fields() {
  using P = cuda::PagedAttentionPlanParams;
  return fields(field<&P::config>("config"), field<&P::num_reqs>("num_reqs"),
                field<&P::query_start_loc>("query_start_loc"), field<&P::seq_lens>("seq_lens"),
                field<&P::block_table_rows>("block_table_rows"), field<&P::workspace>("workspace"),
                stream<P>());
}

auto attention_fields() {
  using P = cuda::PagedAttentionParams;
  return fields(field<&P::config>("config"), field<&P::dtype>("dtype"), field<&P::block_size>("block_size"),
                field<&P::softmax_scale>("softmax_scale"), field<&P::max_query_len>("max_query_len"),
                field<&P::query>("query"), field<&P::stride_query_token>("stride_query_token"),
                field<&P::key_cache>("key_cache"), field<&P::value_cache>("value_cache"),
                field<&P::stride_block>("stride_block"), field<&P::out>("out"),
                field<&P::stride_out_token>("stride_out_token"), field<&P::block_tables>("block_tables"),
                field<&P::stride_block_table>("stride_block_table"), field<&P::workspace>("workspace"),
                stream<P>(), field<&P::kv_dtype>("kv_dtype", 0), field<&P::k_scale>("k_scale", 1.0f),
                field<&P::v_scale>("v_scale", 1.0f), field<&P::soft_cap>("soft_cap", 0.0f),
                field<&P::follows_layer>("follows_layer", false));
}

}  // namespace

void bind_attention(py::module_& m) {
  def_settings<cuda::PagedAttentionConfig>(m, "PagedAttentionConfig", config_fields());
  m.def("paged_attention_workspace_bytes", &cuda::paged_attention_workspace_bytes);
  def_launch(m, "paged_attention_plan", cuda::launch_paged_attention_plan, plan_fields());
  def_launch(m, "paged_attention", cuda::launch_paged_attention, attention_fields());
}

}  // namespace quire::bindings
