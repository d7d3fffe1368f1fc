#include "sample_kernel.cuh"

namespace quire::cuda {
namespace sampling {

namespace {

constexpr int kFewRows = 32;

void launch_plain(const SampleParams& p, cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    // Few rows leave room on every SM, and blocks may have 64 registers; for many rows a fifth block per SM,
    // with 48 registers, is worth more, if not to rows with top_k or top_p.
    launch("sample", p.num_rows <= kFewRows ? sample_kernel<T, 4, false> : sample_kernel<T, 5, false>,
           launch_config(p, stream), p);
  });
}

}  // namespace
}  // namespace sampling

void launch_sample(const SampleParams& p, cudaStream_t stream) {
  using namespace sampling;
  check_range("num_rows", p.num_rows, 0, INT32_MAX / kClusterSize);
  check_range("vocab_size", p.vocab_size, 1, kMaxVocabSize);
  if (p.last_token_ids != nullptr && p.sample_rows == nullptr) {
    refuse("sample_rows", "null", "an array when last_token_ids is given");
  }
  if (p.token_counts != nullptr && (p.sample_rows == nullptr || p.repetition_penalty == nullptr ||
                                    p.presence_penalty == nullptr || p.frequency_penalty == nullptr)) {
    refuse("token_counts", "an array", "null without sample_rows and the three penalties");
  }
  if ((p.mask_rows == nullptr) != (p.token_masks == nullptr)) {
    refuse("mask_rows", "one of two arrays", "mask_rows and token_masks, or neither");
  }
  if (p.bias_offsets != nullptr && (p.bias_ids == nullptr || p.biases == nullptr)) {
    refuse("bias_offsets", "an array", "null without bias_ids and biases");
  }
  if (p.min_p != nullptr || p.token_counts != nullptr || p.bias_offsets != nullptr) {
    launch_adjusted(p, stream);
  } else {
    launch_plain(p, stream);
  }
}

}  // namespace quire::cuda
