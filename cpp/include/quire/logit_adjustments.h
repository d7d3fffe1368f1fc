// What a request changes about its logits before they are sampled from: min_p, penalties, logit_bias, and
// which tokens may be sampled at all. quire/kernels/sampling.h says in which order, and exactly how.
//
// Most batches have no such request: then nothing here is filled, packed or copied.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "quire/sampling.h"
#include "quire/token_mask.h"

namespace quire {

struct Batch;
struct Sequence;

// What one request asks for. Never changes, so the sequences of a request can share it.
struct LogitAdjustments {
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<LogitBias> biases;  // ascending ids, each once
  TokenMask mask;

  bool has_penalties() const {
    return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0;
  }
  // Whether there is more than the mask.
  bool changes_logits() const { return min_p > 0 || has_penalties() || !biases.empty(); }
};

// Null when the params ask for nothing of the kind. params: valid.
std::shared_ptr<const LogitAdjustments> make_logit_adjustments(const SamplingParams& params,
                                                               const std::vector<int32_t>& eos_token_ids);

// Why no token could be sampled. adjustments: of the request; may be null.
const char* no_token_error(const LogitAdjustments* adjustments);

// Adds what the last sample of the batch needs, which is the request's. To be called when the request has
// adjustments, or when the batch has some already.
//
// The samplers keep two tables with one row per row of the block tables: token_counts (what penalties know
// of a request, see quire/kernels/sampling.h) and token_masks, which `masks` mirrors. A batch writes what a
// request needs that samples for the first time since it got its row, be it new or resumed. Later the
// samplers themselves count what they draw, so nobody needs to know an id to go on.
void append_adjustments(Batch& batch, Sequence& request, MaskTable& masks);

}  // namespace quire
