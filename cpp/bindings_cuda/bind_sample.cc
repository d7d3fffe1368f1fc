// Python's names of the sampler and of what goes with it.
#include "bindings.h"
#include "quire/cuda/logprobs.h"
#include "quire/cuda/sample.h"
#include "quire/cuda/token_counts.h"

namespace quire::bindings {
namespace {

void sample(int dtype, int32_t num_rows, int32_t vocab_size, Address logits, int64_t stride_logits,
            Address temperature, Address top_k, Address top_p, Address seed, Address output_idx,
            Address mask_offsets, Address mask_ids, Address out, Address stream, Address sample_rows,
            Address last_token_ids, Address min_p, Address repetition_penalty, Address presence_penalty,
            Address frequency_penalty, Address token_counts, Address allowed_rows, Address allowed_masks,
            Address bias_offsets, Address bias_ids, Address biases) {
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
  p.sample_rows = at<int32_t>(sample_rows);
  p.last_token_ids = at<int32_t>(last_token_ids);
  p.min_p = at<float>(min_p);
  p.repetition_penalty = at<float>(repetition_penalty);
  p.presence_penalty = at<float>(presence_penalty);
  p.frequency_penalty = at<float>(frequency_penalty);
  p.token_counts = at<uint16_t>(token_counts);
  p.allowed_rows = at<int32_t>(allowed_rows);
  p.allowed_masks = at<uint32_t>(allowed_masks);
  p.bias_offsets = at<int32_t>(bias_offsets);
  p.bias_ids = at<int32_t>(bias_ids);
  p.biases = at<float>(biases);
  cuda::launch_sample(p, stream_at(stream));
}

void token_counts(int32_t num_reqs, int32_t vocab_size, Address rows, Address token_offsets,
                  Address prompt_lens, Address token_ids, Address token_counts, Address stream) {
  cuda::TokenCountsParams p;
  p.num_reqs = num_reqs;
  p.vocab_size = vocab_size;
  p.rows = at<int32_t>(rows);
  p.token_offsets = at<int32_t>(token_offsets);
  p.prompt_lens = at<int32_t>(prompt_lens);
  p.token_ids = at<int32_t>(token_ids);
  p.token_counts = at<uint16_t>(token_counts);
  cuda::launch_token_counts(p, stream_at(stream));
}

void logprobs(int dtype, int32_t num_rows, int32_t vocab_size, Address logits, int64_t stride_logits,
              Address token_ids, Address num_logprobs, Address token_logprobs, Address token_ranks,
              Address top_ids, Address top_logprobs, Address stream) {
  cuda::LogprobsParams p;
  p.dtype = static_cast<cuda::DType>(dtype);
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
  cuda::launch_logprobs(p, stream_at(stream));
}

}  // namespace

void bind_sample(py::module_& m) {
  using py::arg;
  m.def("sample", &sample, Release(), arg("dtype"), arg("num_rows"), arg("vocab_size"), arg("logits"),
        arg("stride_logits"), arg("temperature"), arg("top_k"), arg("top_p"), arg("seed"), arg("output_idx"),
        arg("mask_offsets"), arg("mask_ids"), arg("out"), arg("stream"), arg("sample_rows") = Address{0},
        arg("last_token_ids") = Address{0}, arg("min_p") = Address{0}, arg("repetition_penalty") = Address{0},
        arg("presence_penalty") = Address{0}, arg("frequency_penalty") = Address{0},
        arg("token_counts") = Address{0}, arg("allowed_rows") = Address{0}, arg("allowed_masks") = Address{0},
        arg("bias_offsets") = Address{0}, arg("bias_ids") = Address{0}, arg("biases") = Address{0});
  m.def("token_counts", &token_counts, Release());
  m.def("logprobs", &logprobs, Release());
}

}  // namespace quire::bindings
