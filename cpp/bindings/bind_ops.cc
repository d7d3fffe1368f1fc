// CPU kernels on raw pointers. quire/ops.py is the one caller: it has checked shapes, types and layout, and
// keeps the tensors alive for the call. Pointers come as integers; arguments are positional, for a decode
// step of a small model makes dozens of these calls and each costs about a microsecond.
//
// Every kernel releases the GIL: it touches no Python object and may run for long.
#include <pybind11/stl.h>

#include "bindings.h"
#include "quire/cpu/layers.h"
#include "quire/cpu/logprobs.h"
#include "quire/cpu/paged_attention.h"
#include "quire/cpu/rope_and_cache.h"
#include "quire/cpu/runtime.h"
#include "quire/cpu/sample.h"
#include "quire/cpu/token_counts.h"

namespace py = pybind11;

namespace quire::bindings {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void paged_attention(int dtype, Address query, int64_t stride_query_token, Address key_cache,
                     Address value_cache, Address out, int64_t stride_out_token, int32_t num_q_heads,
                     int32_t num_kv_heads, int32_t head_dim, int32_t block_size, float softmax_scale,
                     int32_t num_reqs, Address block_tables, int64_t stride_block_table,
                     Address block_table_rows, Address query_start_loc, Address seq_lens) {
  cpu::PagedAttentionParams p;
  p.dtype = static_cast<cpu::DType>(dtype);
  p.num_reqs = num_reqs;
  p.num_q_heads = num_q_heads;
  p.num_kv_heads = num_kv_heads;
  p.head_dim = head_dim;
  p.block_size = block_size;
  p.softmax_scale = softmax_scale;
  p.query = at<void>(query);
  p.stride_query_token = stride_query_token;
  p.key_cache = at<void>(key_cache);
  p.value_cache = at<void>(value_cache);
  p.out = at<void>(out);
  p.stride_out_token = stride_out_token;
  p.block_tables = at<int32_t>(block_tables);
  p.stride_block_table = stride_block_table;
  p.block_table_rows = at<int32_t>(block_table_rows);
  p.query_start_loc = at<int32_t>(query_start_loc);
  p.seq_lens = at<int32_t>(seq_lens);
  cpu::paged_attention(p);
}

void rope_and_cache(int dtype, int32_t num_tokens, int32_t num_q_heads, int32_t num_kv_heads,
                    int32_t head_dim, Address qkv, int64_t stride_token, Address cos, Address sin,
                    int32_t max_position, Address positions, Address slot_mapping, Address key_cache,
                    Address value_cache, int64_t num_slots) {
  cpu::RopeAndCacheParams p;
  p.dtype = static_cast<cpu::DType>(dtype);
  const int64_t element = cpu::size_of(p.dtype);
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
  cpu::rope_and_cache(p);
}

void rms_norm(int dtype, int32_t num_rows, int32_t hidden_size, float eps, Address x, int64_t stride_x,
              Address residual, Address weight, Address out) {
  cpu::RmsNormParams p;
  p.dtype = static_cast<cpu::DType>(dtype);
  p.num_rows = num_rows;
  p.hidden_size = hidden_size;
  p.eps = eps;
  p.x = at<void>(x);
  p.stride_x = stride_x;
  p.residual = at<void>(residual);
  p.weight = at<void>(weight);
  p.out = at<void>(out);
  cpu::rms_norm(p);
}

void silu_mul(int dtype, int32_t num_rows, int32_t intermediate_size, Address gate_up, int64_t stride_gate_up,
              Address out) {
  cpu::SiluMulParams p;
  p.dtype = static_cast<cpu::DType>(dtype);
  p.num_rows = num_rows;
  p.intermediate_size = intermediate_size;
  p.gate_up = at<void>(gate_up);
  p.stride_gate_up = stride_gate_up;
  p.out = at<void>(out);
  cpu::silu_mul(p);
}

void embedding(int dtype, int32_t num_tokens, int32_t vocab_size, int32_t hidden_size, Address token_ids,
               Address table, Address out) {
  cpu::EmbeddingParams p;
  p.dtype = static_cast<cpu::DType>(dtype);
  p.num_tokens = num_tokens;
  p.vocab_size = vocab_size;
  p.hidden_size = hidden_size;
  p.token_ids = at<int32_t>(token_ids);
  p.table = at<void>(table);
  p.out = at<void>(out);
  cpu::embedding(p);
}

void sample(int dtype, int32_t num_rows, int32_t vocab_size, Address logits, int64_t stride_logits,
            Address temperature, Address top_k, Address top_p, Address seed, Address output_idx,
            Address mask_offsets, Address mask_ids, Address out, Address min_p, Address repetition_penalty,
            Address presence_penalty, Address frequency_penalty, Address token_counts, Address sample_rows,
            Address allowed_rows, Address allowed_masks, Address bias_offsets, Address bias_ids,
            Address biases) {
  cpu::SampleParams p;
  p.dtype = static_cast<cpu::DType>(dtype);
  p.num_rows = num_rows;
  p.vocab_size = vocab_size;
  p.logits = at<void>(logits);
  p.stride_logits = stride_logits;
  p.temperature = at<float>(temperature);
  p.top_k = at<int32_t>(top_k);
  p.top_p = at<float>(top_p);
  p.seed = at<uint64_t>(seed);
  p.output_idx = at<int32_t>(output_idx);
  p.mask_offsets = at<int32_t>(mask_offsets);
  p.mask_ids = at<int32_t>(mask_ids);
  p.out = at<int32_t>(out);
  p.min_p = at<float>(min_p);
  p.repetition_penalty = at<float>(repetition_penalty);
  p.presence_penalty = at<float>(presence_penalty);
  p.frequency_penalty = at<float>(frequency_penalty);
  p.token_counts = at<uint16_t>(token_counts);
  p.sample_rows = at<int32_t>(sample_rows);
  p.allowed_rows = at<int32_t>(allowed_rows);
  p.allowed_masks = at<uint32_t>(allowed_masks);
  p.bias_offsets = at<int32_t>(bias_offsets);
  p.bias_ids = at<int32_t>(bias_ids);
  p.biases = at<float>(biases);
  cpu::sample(p);
}

void token_counts(int32_t num_reqs, int32_t vocab_size, Address rows, Address token_offsets,
                  Address prompt_lens, Address token_ids, Address token_counts) {
  cpu::TokenCountsParams p;
  p.num_reqs = num_reqs;
  p.vocab_size = vocab_size;
  p.rows = at<int32_t>(rows);
  p.token_offsets = at<int32_t>(token_offsets);
  p.prompt_lens = at<int32_t>(prompt_lens);
  p.token_ids = at<int32_t>(token_ids);
  p.token_counts = at<uint16_t>(token_counts);
  cpu::token_counts(p);
}

void logprobs(int dtype, int32_t num_rows, int32_t vocab_size, Address logits, int64_t stride_logits,
              Address token_ids, Address num_logprobs, Address token_logprobs, Address token_ranks,
              Address top_ids, Address top_logprobs) {
  cpu::LogprobsParams p;
  p.dtype = static_cast<cpu::DType>(dtype);
  p.num_rows = num_rows;
  p.vocab_size = vocab_size;
  p.logits = at<void>(logits);
  p.stride_logits = stride_logits;
  p.token_ids = at<int32_t>(token_ids);
  p.num_logprobs = at<int32_t>(num_logprobs);
  p.token_logprobs = at<float>(token_logprobs);
  p.token_ranks = at<int32_t>(token_ranks);
  p.top_ids = at<int32_t>(top_ids);
  p.top_logprobs = at<float>(top_logprobs);
  cpu::logprobs(p);
}

}  // namespace

void bind_ops(py::module_& m) {
  using Release = py::call_guard<py::gil_scoped_release>;
  m.def("cpu_paged_attention", &paged_attention, Release());
  m.def("cpu_rope_and_cache", &rope_and_cache, Release());
  m.def("cpu_rms_norm", &rms_norm, Release());
  m.def("cpu_silu_mul", &silu_mul, Release());
  m.def("cpu_embedding", &embedding, Release());
  m.def("cpu_sample", &sample, Release());
  m.def("cpu_token_counts", &token_counts, Release());
  m.def("cpu_logprobs", &logprobs, Release());

  m.def("cpu_isa", &cpu::cpu_isa);
  m.def("supported_cpu_isas", &cpu::supported_cpu_isas);
  m.def("set_cpu_isa", &cpu::set_cpu_isa, py::arg("name"));
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("num_threads"), Release());  // joins threads
  m.def("philox4x32", &cpu::philox4x32, py::arg("seed"), py::arg("counter"));
}

}  // namespace quire::bindings
