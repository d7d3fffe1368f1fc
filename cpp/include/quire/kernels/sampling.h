// From logits to token ids, their logprobs, and what penalties know of a request, on both devices.
//
// Order of a row: mask -> biases -> penalties (repetition, frequency, presence; before the greedy choice too)
// -> temperature -> min_p -> top_k -> top_p -> draw, as in vLLM, whose allowed_token_ids, bad_words and
// min_tokens are the mask here. Tokens are ranked by (logit descending, id ascending), so ties never make a
// set ambiguous: top_k keeps the first top_k of that order, top_p the shortest prefix of what is left whose
// renormalised probability reaches top_p (at least one token). The draw takes one number from Philox4x32-10
// with key = seed and counter = output_idx: a request's tokens depend on nothing else in the batch. Both
// devices walk the tokens in the same order, so their ids differ only where float32 rounding decides.
//
// Exactly, for a logit x, of a token that is in the prompt, or count times in the output:
//   bias       x = x + bias: float32, rounded once
//   penalties  x = x > 0 ? x / repetition : x * repetition; x = fma(-frequency, count, x);
//              x = x - presence if count > 0: float32, each step rounded once
//   min_p      out if x < float32(max + temperature * log(min_p)), computed in float64: less than min_p times
//              as likely as the likeliest token. No meaning with temperature 0.
#pragma once

#include <cstdint>

#include "quire/fields.h"
#include "quire/kernels/dtype.h"
#include "quire/members.h"

namespace quire {

// One token id per row of logits. A row with a NaN or +inf logit, or with no token left, gets -1, and the
// other rows are sampled; then the CPU throws InvalidArgument that names the first such row. A negative or
// NaN temperature: on CUDA like such a logit, on the CPU an error before anything is sampled.
struct SampleParams {
  static constexpr char kName[] = "sample";
  DType dtype = DType::kBFloat16;  // of logits
  int32_t num_rows = 0;
  int32_t vocab_size = 0;        // CUDA: 1 to 2^19
  const void* logits = nullptr;  // [num_rows, vocab_size], rows stride_logits apart; not modified
  int64_t stride_logits = 0;
  const float* temperature = nullptr;   // [num_rows]; 0: the largest logit, the lowest id among equals
  const int32_t* top_k = nullptr;       // [num_rows]; <= 0: off
  const float* top_p = nullptr;         // [num_rows]; >= 1: off
  const uint64_t* seed = nullptr;       // [num_rows]
  const int32_t* output_idx = nullptr;  // [num_rows]
  int32_t* out = nullptr;               // [num_rows]

  // Each row's row of token_counts and of last_token_ids; rows of one call differ, but for those of padding,
  // which point to the last one.
  const int32_t* sample_rows = nullptr;  // [num_rows]
  // Each id is also written to last_token_ids[sample_rows[j]], 0 in place of -1, where the next step's
  // embedding finds it before the host has seen it.
  int32_t* last_token_ids = nullptr;  // [max_num_seqs + 1]

  // Both or none: an id may be sampled in row j when its bit is set in row mask_rows[j] of token_masks, bit
  // id % 32 of word id / 32; all ids when that is -1.
  const int32_t* mask_rows = nullptr;     // [num_rows]
  const uint32_t* token_masks = nullptr;  // [max_num_seqs + 1, (vocab_size + 31) / 32]

  const float* min_p = nullptr;  // [num_rows]; <= 0: off; may be null: off in all rows

  // All four or none, with sample_rows. 1, 0 and 0: none in that row, whose entry of token_counts is then
  // neither read nor written. The id drawn is counted: a row's entry holds what the request needs next.
  const float* repetition_penalty = nullptr;  // [num_rows], > 0
  const float* presence_penalty = nullptr;    // [num_rows]
  const float* frequency_penalty = nullptr;   // [num_rows]
  uint16_t* token_counts = nullptr;           // [max_num_seqs + 1, vocab_size], see TokenCountsParams

  // All three or none: biases[i] is added to the logit of bias_ids[i], for i in [bias_offsets[j],
  // bias_offsets[j + 1]) in row j.
  const int32_t* bias_offsets = nullptr;  // [num_rows + 1]
  const int32_t* bias_ids = nullptr;      // ascending in each row, each once; outside the vocabulary: ignored
  const float* biases = nullptr;          // finite or -inf: the id is not sampled
};
QUIRE_MEMBERS(SampleParams,
              QUIRE_REQUIRED(dtype, num_rows, vocab_size, logits, stride_logits, temperature, top_k, top_p,
                             seed, output_idx, out),
              QUIRE_OPTIONAL(sample_rows, last_token_ids, mask_rows, token_masks, min_p, repetition_penalty,
                             presence_penalty, frequency_penalty, token_counts, bias_offsets, bias_ids,
                             biases));

// Writes rows of token_counts [max_num_seqs + 1, vocab_size] uint16, one per row of the block tables: 0x8000
// says that the token is in the prompt, the lower 15 bits how often it is in the output (32,767: that often
// or more). The memory needs no initial value: a row is written whole here when a request with penalties gets
// it, be it new or resumed, and afterwards kept up to date by the sampler. Nobody clears a row when its
// request ends; rows of requests without penalties are never read.
struct TokenCountsParams {
  static constexpr char kName[] = "token_counts";
  int32_t num_seqs = 0;
  int32_t vocab_size = 0;
  const int32_t* rows = nullptr;  // [num_seqs]: different ones
  const int32_t* token_offsets =
      nullptr;  // [num_seqs + 1]; request i has token_ids[offsets[i], offsets[i + 1])
  const int32_t* prompt_lens = nullptr;  // [num_seqs]: how many of them are its prompt; the rest: its output
  const int32_t* token_ids = nullptr;    // ids outside the vocabulary are ignored
  uint16_t* token_counts = nullptr;
};
QUIRE_MEMBERS(TokenCountsParams, QUIRE_REQUIRED(num_seqs, vocab_size, rows, token_offsets, prompt_lens,
                                                token_ids, token_counts));

// Logprobs of sampled tokens and of the likeliest ones (kMaxLogprobs at most), from the raw logits: before
// masks, penalties and temperature, as vLLM's raw_logprobs.
//
// logprob of a logit x: x - max - log(sum of exp(x - max)), on CUDA in float32 but for the last step. A row
// gives the same numbers whatever is beside it in the batch. A row with a NaN or +inf logit, or with nothing
// above -inf, has logprobs NaN, ranks 0 and top_ids -1.
struct LogprobsParams {
  static constexpr char kName[] = "logprobs";
  DType dtype = DType::kBFloat16;  // of logits
  int32_t num_rows = 0;
  int32_t vocab_size = 0;        // CUDA: 1 to 2^19
  const void* logits = nullptr;  // [num_rows, vocab_size], rows stride_logits apart
  int64_t stride_logits = 0;
  const int32_t* token_ids = nullptr;     // [num_rows]: the sampled ones
  const int32_t* num_logprobs = nullptr;  // [num_rows]; n > 0: the sampled token and the n likeliest; <= 0:
                                          // nothing is computed or written for the row
  float* token_logprobs = nullptr;        // [num_rows]; NaN where the id is outside the vocabulary
  int32_t* token_ranks = nullptr;         // [num_rows]; 1: the likeliest token; 0 where the id is outside
  int32_t* top_ids = nullptr;  // [num_rows, kMaxLogprobs], the first n of each row; -1 where there are fewer
                               // than n tokens with a logit above -inf
  float* top_logprobs = nullptr;  // as top_ids; -inf in place of -1
};
QUIRE_MEMBERS(LogprobsParams,
              QUIRE_REQUIRED(dtype, num_rows, vocab_size, logits, stride_logits, token_ids, num_logprobs,
                             token_logprobs, token_ranks, top_ids, top_logprobs));

}  // namespace quire
