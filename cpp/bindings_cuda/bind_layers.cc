// Python's names of the layers beside attention, and of the cache write.
#include "bindings.h"
#include "quire/cuda/block_table.h"
#include "quire/cuda/copy_blocks.h"
#include "quire/cuda/layers.h"
#include "quire/cuda/rope_and_cache.h"

namespace quire::bindings {
namespace {

void rope_and_cache(int dtype, int32_t num_tokens, int32_t num_q_heads, int32_t num_kv_heads,
                    int32_t head_dim, Address qkv, int64_t stride_token, Address cos, Address sin,
                    int32_t max_position, Address positions, Address slot_mapping, Address key_cache,
                    Address value_cache, int64_t num_slots, Address stream, int kv_dtype, float k_scale,
                    float v_scale, Address q_norm, Address k_norm, float norm_eps, bool places_are_settled) {
  cuda::RopeAndCacheParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
  const int64_t element = cuda::size_of(p.dtype);
  p.num_tokens = num_tokens;
  p.num_q_heads = num_q_heads;
  p.num_kv_heads = num_kv_heads;
  p.head_dim = head_dim;
  p.max_position = max_position;
  p.query = at<void>(qkv);
  p.key = at<char>(qkv) + int64_t{num_q_heads} * head_dim * element;
  p.value = at<char>(qkv) + int64_t{num_q_heads + num_kv_heads} * head_dim * element;
  p.stride_token = stride_token;
  p.cos = at<float>(cos);
  p.sin = at<float>(sin);
  p.positions = at<int32_t>(positions);
  p.slot_mapping = at<int64_t>(slot_mapping);
  p.key_cache = at<void>(key_cache);
  p.value_cache = at<void>(value_cache);
  p.num_slots = num_slots;
  p.kv_dtype = static_cast<cuda::KVDType>(kv_dtype);
  p.k_scale = k_scale;
  p.v_scale = v_scale;
  p.q_norm = at<void>(q_norm);
  p.k_norm = at<void>(k_norm);
  p.norm_eps = norm_eps;
  p.places_are_settled = places_are_settled;
  cuda::launch_rope_and_cache(p, stream_at(stream));
}

void rms_norm(int dtype, int32_t num_rows, int32_t hidden_size, float eps, Address x, int64_t stride_x,
              Address residual, Address weight, Address out, Address stream, Address out_scale) {
  cuda::RmsNormParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
  p.num_rows = num_rows;
  p.hidden_size = hidden_size;
  p.eps = eps;
  p.x = at<void>(x);
  p.stride_x = stride_x;
  p.residual = at<void>(residual);
  p.weight = at<void>(weight);
  p.out = at<void>(out);
  p.out_scale = at<float>(out_scale);
  cuda::launch_rms_norm(p, stream_at(stream));
}

void silu_mul(int dtype, int32_t num_rows, int32_t intermediate_size, Address gate_up, int64_t stride_gate_up,
              Address out, Address stream, Address out_scale) {
  cuda::SiluMulParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
  p.num_rows = num_rows;
  p.intermediate_size = intermediate_size;
  p.gate_up = at<void>(gate_up);
  p.stride_gate_up = stride_gate_up;
  p.out = at<void>(out);
  p.out_scale = at<float>(out_scale);
  cuda::launch_silu_mul(p, stream_at(stream));
}

void embedding(int dtype, int32_t num_tokens, int32_t vocab_size, int32_t hidden_size, Address token_ids,
               Address table, Address out, Address stream, Address last_token_ids,
               int32_t num_last_token_ids) {
  cuda::EmbeddingParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
  p.num_tokens = num_tokens;
  p.vocab_size = vocab_size;
  p.hidden_size = hidden_size;
  p.token_ids = at<int32_t>(token_ids);
  p.table = at<void>(table);
  p.out = at<void>(out);
  p.last_token_ids = at<int32_t>(last_token_ids);
  p.num_last_token_ids = num_last_token_ids;
  cuda::launch_embedding(p, stream_at(stream));
}

void gather_rows(int dtype, int32_t num_rows, int32_t num_x_rows, Address indices, Address x,
                 int64_t stride_x, int32_t width, Address out, Address stream, Address x2, int64_t stride_x2,
                 int32_t width2, Address out2) {
  cuda::GatherRowsParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
  p.num_rows = num_rows;
  p.num_x_rows = num_x_rows;
  p.indices = at<int32_t>(indices);
  p.first = {at<void>(x), stride_x, width, at<void>(out)};
  p.second = {at<void>(x2), stride_x2, width2, at<void>(out2)};
  cuda::launch_gather_rows(p, stream_at(stream));
}

void update_block_tables(Address updates, Address num_updates, int32_t max_updates, Address block_tables,
                         int64_t num_entries, Address stream) {
  cuda::BlockTableUpdateParams p;
  p.updates = at<int32_t>(updates);
  p.num_updates = at<int32_t>(num_updates);
  p.max_updates = max_updates;
  p.block_tables = at<int32_t>(block_tables);
  p.num_entries = num_entries;
  cuda::launch_block_table_update(p, stream_at(stream));
}

void copy_blocks(Address copies, int32_t num_copies, Address cache, int32_t num_arrays, int32_t num_blocks,
                 int64_t block_bytes, Address stream) {
  cuda::CopyBlocksParams p;
  p.copies = at<int32_t>(copies);
  p.num_copies = num_copies;
  p.cache = at<void>(cache);
  p.num_arrays = num_arrays;
  p.num_blocks = num_blocks;
  p.block_bytes = block_bytes;
  cuda::launch_copy_blocks(p, stream_at(stream));
}

}  // namespace

void bind_layers(py::module_& m) {
  m.def("rope_and_cache", &rope_and_cache, Release(), py::arg("dtype"), py::arg("num_tokens"),
        py::arg("num_q_heads"), py::arg("num_kv_heads"), py::arg("head_dim"), py::arg("qkv"),
        py::arg("stride_token"), py::arg("cos"), py::arg("sin"), py::arg("max_position"),
        py::arg("positions"), py::arg("slot_mapping"), py::arg("key_cache"), py::arg("value_cache"),
        py::arg("num_slots"), py::arg("stream"), py::arg("kv_dtype") = 0, py::arg("k_scale") = 1.0f,
        py::arg("v_scale") = 1.0f, py::arg("q_norm") = 0, py::arg("k_norm") = 0, py::arg("norm_eps") = 0.0f,
        py::arg("places_are_settled") = false);
  m.def("rms_norm", &rms_norm, Release(), py::arg("dtype"), py::arg("num_rows"), py::arg("hidden_size"),
        py::arg("eps"), py::arg("x"), py::arg("stride_x"), py::arg("residual"), py::arg("weight"),
        py::arg("out"), py::arg("stream"), py::arg("out_scale") = 0);
  m.def("silu_mul", &silu_mul, Release(), py::arg("dtype"), py::arg("num_rows"), py::arg("intermediate_size"),
        py::arg("gate_up"), py::arg("stride_gate_up"), py::arg("out"), py::arg("stream"),
        py::arg("out_scale") = 0);
  m.def("embedding", &embedding, Release(), py::arg("dtype"), py::arg("num_tokens"), py::arg("vocab_size"),
        py::arg("hidden_size"), py::arg("token_ids"), py::arg("table"), py::arg("out"), py::arg("stream"),
        py::arg("last_token_ids") = 0, py::arg("num_last_token_ids") = 0);
  m.def("gather_rows", &gather_rows, Release(), py::arg("dtype"), py::arg("num_rows"), py::arg("num_x_rows"),
        py::arg("indices"), py::arg("x"), py::arg("stride_x"), py::arg("width"), py::arg("out"),
        py::arg("stream"), py::arg("x2") = 0, py::arg("stride_x2") = 0, py::arg("width2") = 0,
        py::arg("out2") = 0);
  m.def("update_block_tables", &update_block_tables, Release(), py::arg("updates"), py::arg("num_updates"),
        py::arg("max_updates"), py::arg("block_tables"), py::arg("num_entries"), py::arg("stream"));
  m.def("copy_blocks", &copy_blocks, Release(), py::arg("copies"), py::arg("num_copies"), py::arg("cache"),
        py::arg("num_arrays"), py::arg("num_blocks"), py::arg("block_bytes"), py::arg("stream"));
}

}  // namespace quire::bindings
