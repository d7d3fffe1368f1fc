// Python's names of paged attention: the sizes, the plan of a step, and the call of a layer.
#include "bindings.h"
#include "quire/cuda/paged_attention.h"

namespace quire::bindings {
namespace {

cuda::PagedAttentionConfig make_config(int32_t num_q_heads, int32_t num_kv_heads, int32_t head_dim,
                                       int32_t max_num_reqs, int32_t max_num_tokens, int32_t max_seq_len,
                                       int32_t num_sms, int32_t split_keys, int32_t window) {
  cuda::PagedAttentionConfig config;
  config.num_q_heads = num_q_heads;
  config.num_kv_heads = num_kv_heads;
  config.head_dim = head_dim;
  config.max_num_reqs = max_num_reqs;
  config.max_num_tokens = max_num_tokens;
  config.max_seq_len = max_seq_len;
  config.num_sms = num_sms;
  config.split_keys = split_keys;
  config.window = window;
  return config;
}

void plan(const cuda::PagedAttentionConfig& config, Address num_reqs, Address query_start_loc,
          Address seq_lens, Address block_table_rows, Address workspace, Address stream) {
  cuda::PagedAttentionPlanParams p;
  p.config = config;
  p.num_reqs = at<int32_t>(num_reqs);
  p.query_start_loc = at<int32_t>(query_start_loc);
  p.seq_lens = at<int32_t>(seq_lens);
  p.block_table_rows = at<int32_t>(block_table_rows);
  p.workspace = at<void>(workspace);
  cuda::launch_paged_attention_plan(p, stream_at(stream));
}

void run(const cuda::PagedAttentionConfig& config, int dtype, int32_t block_size, float softmax_scale,
         int32_t max_query_len, Address query, int64_t stride_query_token, Address key_cache,
         Address value_cache, Address out, int64_t stride_out_token, Address block_tables,
         int64_t stride_block_table, Address workspace, Address stream, int kv_dtype, float k_scale,
         float v_scale, float soft_cap, bool follows_layer) {
  cuda::PagedAttentionParams p;
  p.config = config;
  p.dtype = static_cast<cuda::AttentionDType>(dtype);
  p.block_size = block_size;
  p.softmax_scale = softmax_scale;
  p.max_query_len = max_query_len;
  p.query = at<void>(query);
  p.stride_query_token = stride_query_token;
  p.key_cache = at<void>(key_cache);
  p.value_cache = at<void>(value_cache);
  p.out = at<void>(out);
  p.stride_out_token = stride_out_token;
  p.block_tables = at<int32_t>(block_tables);
  p.stride_block_table = stride_block_table;
  p.workspace = at<void>(workspace);
  p.kv_dtype = static_cast<cuda::KVDType>(kv_dtype);
  p.k_scale = k_scale;
  p.v_scale = v_scale;
  p.soft_cap = soft_cap;
  p.follows_layer = follows_layer;
  cuda::launch_paged_attention(p, stream_at(stream));
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<cuda::PagedAttentionConfig>(m, "PagedAttentionConfig")
      .def(py::init(&make_config), py::kw_only(), py::arg("num_q_heads"), py::arg("num_kv_heads"),
           py::arg("head_dim"), py::arg("max_num_reqs"), py::arg("max_num_tokens"), py::arg("max_seq_len"),
           py::arg("num_sms"), py::arg("split_keys") = 0, py::arg("window") = 0);
  m.def("paged_attention_workspace_bytes", &cuda::paged_attention_workspace_bytes);
  m.def("paged_attention_plan", &plan, Release());
  m.def("paged_attention", &run, py::arg("config"), py::arg("dtype"), py::arg("block_size"),
        py::arg("softmax_scale"), py::arg("max_query_len"), py::arg("query"), py::arg("stride_query_token"),
        py::arg("key_cache"), py::arg("value_cache"), py::arg("out"), py::arg("stride_out_token"),
        py::arg("block_tables"), py::arg("stride_block_table"), py::arg("workspace"), py::arg("stream"),
        py::arg("kv_dtype") = 0, py::arg("k_scale") = 1.0f, py::arg("v_scale") = 1.0f,
        py::arg("soft_cap") = 0.0f, py::arg("follows_layer") = false, Release());
}

}  // namespace quire::bindings
