// Python's name of the sampler.
#include "bindings.h"
#include "quire/cuda/sample.h"

namespace quire::bindings {
namespace {

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

void bind_sample(py::module_& m) { m.def("sample", &sample, Release()); }

}  // namespace quire::bindings
