// CUDA kernels on raw device pointers. The caller has checked shapes, types and layout, and keeps the tensors
// alive until the stream has passed the call. Pointers and the stream come as integers, 0 for null and for
// the default stream. A module of its own, so that _core loads on machines without a GPU driver.
//
// Every launch releases the GIL: it touches no Python object and may wait for the driver.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "quire/cuda/layers.h"
#include "quire/cuda/rope_and_cache.h"
#include "quire/cuda/sample.h"

namespace py = pybind11;

namespace quire::bindings {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream_at(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

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

void sample(int dtype, int32_t num_rows, int32_t vocab_size, Address logits, int64_t stride_logits,
            Address temperature, Address top_k, Address top_p, Address seed, Address output_idx,
            Address mask_offsets, Address mask_ids, Address out, Address stream) {
  cuda::SampleParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
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
  cuda::launch_sample(p, stream_at(stream));
}

}  // namespace
}  // namespace quire::bindings

PYBIND11_MODULE(_cuda, m) {
  using namespace quire::bindings;
  using Release = py::call_guard<py::gil_scoped_release>;
  m.doc() = "Quire's CUDA kernels on raw device pointers.";
  m.def("rope_and_cache", &rope_and_cache, Release());
  m.def("rms_norm", &rms_norm, Release());
  m.def("silu_mul", &silu_mul, Release());
  m.def("embedding", &embedding, Release());
  m.def("sample", &sample, Release());
}
