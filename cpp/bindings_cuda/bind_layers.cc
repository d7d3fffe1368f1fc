// Python's names of the layers beside attention, and of the cache write.
#include "bindings.h"
#include "quire/cuda/layers.h"
#include "quire/cuda/rope_and_cache.h"

namespace quire::bindings {
namespace {

void rope_and_cache(int dtype, int32_t num_tokens, int32_t num_q_heads, int32_t num_kv_heads,
                    int32_t head_dim, Address qkv, int64_t stride_token, Address cos, Address sin,
                    int32_t max_position, Address positions, Address slot_mapping, Address key_cache,
                    Address value_cache, int64_t num_slots, Address stream) {
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
  cuda::launch_rope_and_cache(p, stream_at(stream));
}

void rms_norm(int dtype, int32_t num_rows, int32_t hidden_size, float eps, Address x, int64_t stride_x,
              Address residual, Address weight, Address out, Address stream) {
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
  cuda::launch_rms_norm(p, stream_at(stream));
}

void silu_mul(int dtype, int32_t num_rows, int32_t intermediate_size, Address gate_up, int64_t stride_gate_up,
              Address out, Address stream) {
  cuda::SiluMulParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
  p.num_rows = num_rows;
  p.intermediate_size = intermediate_size;
  p.gate_up = at<void>(gate_up);
  p.stride_gate_up = stride_gate_up;
  p.out = at<void>(out);
  cuda::launch_silu_mul(p, stream_at(stream));
}

void embedding(int dtype, int32_t num_tokens, int32_t vocab_size, int32_t hidden_size, Address token_ids,
               Address table, Address out, Address stream) {
  cuda::EmbeddingParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
  p.num_tokens = num_tokens;
  p.vocab_size = vocab_size;
  p.hidden_size = hidden_size;
  p.token_ids = at<int32_t>(token_ids);
  p.table = at<void>(table);
  p.out = at<void>(out);
  cuda::launch_embedding(p, stream_at(stream));
}

}  // namespace

void bind_layers(py::module_& m) {
  m.def("rope_and_cache", &rope_and_cache, Release());
  m.def("rms_norm", &rms_norm, Release());
  m.def("silu_mul", &silu_mul, Release());
  m.def("embedding", &embedding, Release());
}

}  // namespace quire::bindings
