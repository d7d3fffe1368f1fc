// One token id per row of logits, on the GPU.
//
// Order of a row: mask -> biases -> penalties (repetition, frequency, presence; before the greedy choice too)
// -> temperature -> min_p -> top_k -> top_p -> draw, as in vLLM, whose allowed_token_ids, bad_words and
// min_tokens are the mask here.
// Tokens are ranked by (logit descending, id ascending), so ties never make a set ambiguous: top_k keeps the
// first top_k of that order, top_p the shortest prefix of what is left whose renormalised probability reaches
// top_p (at least one token). The draw takes one number from Philox4x32-10 with key = seed and counter =
// output_idx, and walks the tokens in the order in which quire/cpu/sample.h does: ids differ from the CPU's
// only where float32 rounding decides.
//
// Exactly, for a logit x, of a token that is in the prompt, or count times in the output:
//   bias       x = x + bias: float32, rounded once
//   penalties  x = x > 0 ? x / repetition : x * repetition; x = fma(-frequency, count, x);
//              x = x - presence if count > 0: float32, each step rounded once
//   min_p      out if x < float32(max + temperature * log(min_p)), computed in float64: less than min_p times
//              as likely as the likeliest token. No meaning with temperature 0.
#pragma once

#include <cstdint>

#include "quire/cuda/stream.h"
#include "quire/kernels/dtype.h"

namespace quire::cuda {

struct SampleParams {
  DType dtype = DType::kBFloat16;  // of logits
  int32_t num_rows = 0;
  int32_t vocab_size = 0;        // 1 to 2^19
  const void* logits = nullptr;  // [num_rows, vocab_size], rows stride_logits apart; not modified
  int64_t stride_logits = 0;

  const float* temperature = nullptr;   // [num_rows]; 0: the largest logit, the lowest id among equals
  const int32_t* top_k = nullptr;       // [num_rows]; <= 0: off
  const float* top_p = nullptr;         // [num_rows]; >= 1: off
  const uint64_t* seed = nullptr;       // [num_rows]
  const int32_t* output_idx = nullptr;  // [num_rows]
  int32_t* out = nullptr;               // [num_rows]

  const float* min_p = nullptr;  // [num_rows]; <= 0: off; may be null: off in all rows

  // All four or none, with sample_rows. 1, 0 and 0: none in that row, whose entry of token_counts is then
  // neither read nor written. The id drawn is counted: a row's entry holds what the request needs at its next
  // step.
  const float* repetition_penalty = nullptr;  // [num_rows], > 0
  const float* presence_penalty = nullptr;    // [num_rows]
  const float* frequency_penalty = nullptr;   // [num_rows]
  uint16_t* token_counts = nullptr;           // [max_num_seqs + 1, vocab_size], see token_counts.h

  // Both or none. Each id is also written to last_token_ids[sample_rows[j]], 0 in place of -1, where the next
  // step's embedding finds it before the host has seen it. Rows of one call differ, but for those that point
  // to an entry that nobody reads: the last one, for padding.
  const int32_t* sample_rows = nullptr;  // [num_rows]
  int32_t* last_token_ids = nullptr;     // [max_num_seqs + 1]

  // Both or none: an id may be sampled in row j when its bit is set in row mask_rows[j] of token_masks, bit
  // id % 32 of word id / 32; all ids when that is -1.
  const int32_t* mask_rows = nullptr;     // [num_rows]
  const uint32_t* token_masks = nullptr;  // [max_num_seqs + 1, (vocab_size + 31) / 32]

  // All three or none: biases[i] is added to the logit of bias_ids[i], for i in [bias_offsets[j],
  // bias_offsets[j + 1]) in row j. -inf: the id is not sampled.
  const int32_t* bias_offsets = nullptr;  // [num_rows + 1]
  const int32_t* bias_ids = nullptr;      // ascending in each row, each once; ids outside the vocabulary are
                                          // ignored
  const float* biases = nullptr;          // finite or -inf
};

// A row with a NaN or +inf logit, with no token left, or with a negative or NaN temperature gets -1; the
// other rows are not affected. The same row gives the same id whatever is beside it in the batch. Throws
// std::invalid_argument for sizes that are not supported and std::runtime_error when the launch fails.
void launch_sample(const SampleParams& params, cudaStream_t stream);

}  // namespace quire::cuda
