// Logprobs of sampled tokens and of the likeliest ones, from the raw logits: before masks, penalties and
// temperature, as vLLM's raw_logprobs.
//
// logprob of a logit x: x - max - log(sum of exp(x - max)), in float32 but for the last step. Tokens are
// ranked by (logit descending, id ascending). The same row gives the same numbers whatever is beside it in
// the batch.
#pragma once

#include <cstdint>

#include "quire/cuda/stream.h"
#include "quire/kernels/dtype.h"

namespace quire::cuda {

constexpr int32_t kMaxLogprobs = 20;

struct LogprobsParams {
  DType dtype = DType::kBFloat16;  // of logits
  int32_t num_rows = 0;
  int32_t vocab_size = 0;        // 1 to 2^19
  const void* logits = nullptr;  // [num_rows, vocab_size], rows stride_logits apart
  int64_t stride_logits = 0;
  const int32_t* token_ids = nullptr;  // [num_rows]: launch_sample's out
  const int32_t* num_logprobs =
      nullptr;  // [num_rows]; n > 0: the sampled token and the n likeliest (20 at most);
                // <= 0: nothing is computed or written for the row

  float* token_logprobs = nullptr;  // [num_rows]; NaN where the id is outside the vocabulary
  int32_t* token_ranks = nullptr;   // [num_rows]; 1: the likeliest token; 0 where the id is outside
  int32_t* top_ids = nullptr;  // [num_rows, kMaxLogprobs], the first n of each row; -1 where there are fewer
                               // than n tokens with a logit above -inf
  float* top_logprobs = nullptr;  // as top_ids; -inf in place of -1
};

// A row with a NaN or +inf logit, or with nothing above -inf, has logprobs NaN, ranks 0 and top_ids -1.
// Throws std::invalid_argument for sizes that are not supported and std::runtime_error when the launch fails.
void launch_logprobs(const LogprobsParams& params, cudaStream_t stream);

}  // namespace quire::cuda
