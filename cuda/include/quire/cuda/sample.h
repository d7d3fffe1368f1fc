// One token id per row of logits, on the GPU.
//
// Order of a row: mask ids -> temperature -> top_k -> top_p -> draw. Tokens are ranked by (logit descending,
// id ascending), so ties never make a set ambiguous: top_k keeps the first top_k of that order, top_p the
// shortest prefix of what is left whose renormalised probability reaches top_p (at least one token). The draw
// takes one number from Philox4x32-10 with key = seed and counter = output_idx, and walks the tokens in the
// order in which quire/cpu/sample.h does: ids differ from the CPU's only where float32 rounding decides.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "quire/cuda/dtype.h"

namespace quire::cuda {

struct SampleParams {
  DType dtype = DType::kBFloat16;  // of logits
  int32_t num_rows = 0;
  int32_t vocab_size = 0;  // about 400,000 at most (16-bit logits: 800,000): a row lies in shared memory
  const void* logits = nullptr;  // [num_rows, vocab_size], rows stride_logits apart; not modified
  int64_t stride_logits = 0;

  const float* temperature = nullptr;     // [num_rows]; 0: the largest logit, the lowest id among equals
  const int32_t* top_k = nullptr;         // [num_rows]; <= 0: off
  const float* top_p = nullptr;           // [num_rows]; >= 1: off
  const uint64_t* seed = nullptr;         // [num_rows]
  const int32_t* output_idx = nullptr;    // [num_rows]
  const int32_t* mask_offsets = nullptr;  // [num_rows + 1]; row j may not give mask_ids[offsets[j], offsets[j
                                          // + 1]); may be null
  const int32_t* mask_ids = nullptr;      // ids outside the vocabulary are ignored; may be null as above
  int32_t* out = nullptr;                 // [num_rows]

  // Both or none. Each id is also written to last_token_ids[sample_rows[j]], 0 in place of -1, where the next
  // step's embedding finds it before the host has seen it. Rows of one call differ, but for those that point
  // to an entry that nobody reads: the last one, for padding.
  const int32_t* sample_rows = nullptr;  // [num_rows]
  int32_t* last_token_ids = nullptr;     // [max_num_seqs + 1]
};

// A row with a NaN or +inf logit, with no token left, or with a negative or NaN temperature gets -1; the
// other rows are not affected. The same row gives the same id whatever is beside it in the batch. Throws
// std::invalid_argument for sizes that are not supported and std::runtime_error when the launch fails.
void launch_sample(const SampleParams& params, cudaStream_t stream);

}  // namespace quire::cuda
