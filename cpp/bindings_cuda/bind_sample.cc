// Python's name of the sampler.
#include "bindings.h"
#include "quire/cuda/sample.h"

namespace quire::bindings {
namespace {

void sample(int dtype, int32_t num_rows, int32_t vocab_size, Address logits, int64_t stride_logits,
            Address temperature, Address top_k, Address top_p, Address seed, Address output_idx,
            Address mask_offsets, Address mask_ids, Address out, Address stream, Address sample_rows,
            Address last_token_ids) {
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
  cuda::launch_sample(p, stream_at(stream));
}

}  // namespace

void bind_sample(py::module_& m) {
  using py::arg;
  m.def("sample", &sample, Release(), arg("dtype"), arg("num_rows"), arg("vocab_size"), arg("logits"),
        arg("stride_logits"), arg("temperature"), arg("top_k"), arg("top_p"), arg("seed"), arg("output_idx"),
        arg("mask_offsets"), arg("mask_ids"), arg("out"), arg("stream"), arg("sample_rows") = Address{0},
        arg("last_token_ids") = Address{0});
}

}  // namespace quire::bindings
