// What a request changes about its logits before they are sampled from: min_p, penalties, logit_bias, bad
// words and allowed ids. The samplers (quire/cpu/sample.h, quire/cuda/sample.h) say in which order, and
// exactly how.
//
// Most batches have no such request: then nothing here is filled, packed or copied.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "quire/sampling.h"

namespace quire {

struct Batch;
struct RequestState;

// Of one request. Never changes, so the sequences of a request can share it.
struct LogitEdits {
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<LogitBias> biases;                // ascending ids, each once; -inf: may not be sampled
  std::vector<std::vector<int32_t>> bad_words;  // those of several ids: the others are among the biases
  std::vector<uint32_t> allowed_mask;           // a row of allowed_masks up to its last bit; empty: all

  bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
};

// Null when the params ask for nothing of the kind. params: valid.
std::shared_ptr<const LogitEdits> make_logit_edits(const SamplingParams& params);

// Why no token could be sampled. edits: of the request; may be null.
const char* no_token_error(const LogitEdits* edits);

// The samplers keep two tables with one row per row of the block tables: token_counts (what penalties know
// of a request, see quire/cpu/token_counts.h) and allowed_masks, [max_num_seqs + 1, num_mask_words] uint32,
// where bit id % 32 of word id / 32 says that the token may be sampled. A batch writes the rows of requests
// that sample for the first time since they got their row, be they new or resumed. Later the samplers
// themselves count what they draw, so nobody needs to know an id to go on.
constexpr int32_t num_mask_words(int32_t vocab_size) { return (vocab_size + 31) / 32; }

// Adds what the last sample of the batch needs, which is the request's. To be called when the request has
// edits, or when the batch has some already.
void append_edits(Batch& batch, RequestState& request, int32_t vocab_size);

}  // namespace quire
