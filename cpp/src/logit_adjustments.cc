#include "quire/logit_adjustments.h"

#include <algorithm>
#include <iterator>
#include <span>

#include "quire/batch.h"
#include "quire/error.h"
#include "quire/sequence.h"

namespace quire {
namespace {

bool has_smaller_id(const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; }

// The first adjustments of a batch: neutral ones for the samples before.
void begin_adjustments(Batch& batch, int32_t num_before) {
  batch.has_adjustments = true;
  for_each_column([&](const auto& column) {
    if (column.part != Part::kAdjustments || column.length.is_list) return;
    std::fill_n((batch.*column.values).begin(), num_before + column.length.is_offsets, column.padding);
  });
}

// The request's row of token_counts.
void append_counts(Batch& batch, const Sequence& request) {
  const std::vector<int32_t>& ids = request.token_ids;
  if (batch.counted_rows.empty()) batch.counted_offsets.push_back(0);
  batch.counted_rows.push_back(request.row);
  batch.counted_prompt_lens.push_back(request.num_prompt_tokens);
  batch.counted_token_ids.insert(batch.counted_token_ids.end(), ids.begin(), ids.end());
  batch.counted_offsets.push_back(static_cast<int32_t>(batch.counted_token_ids.size()));
}

// Which tokens sample j, the request's, may give.
void append_mask(Batch& batch, int32_t j, const Sequence& request, MaskTable& masks) {
  const TokenMask& mask = request.adjustments->mask;
  QUIRE_CHECK(!mask.needs_output() || request.num_pending_ids == 1,
              "request " << request.request_id << ": " << request.num_pending_ids << " ids pending");
  const auto output = std::span(request.token_ids).subspan(static_cast<size_t>(request.num_prompt_tokens));
  const OutputPlace place{batch.output_idx[j], output};
  if (!mask.forbids(place)) return;
  batch.has_masks = true;
  batch.mask_rows[j] = request.row;
  if (!request.has_written_tables || mask.changes(place)) {
    masks.write(request.row, mask, place, batch.mask_updates);
  }
}

}  // namespace

std::shared_ptr<const LogitAdjustments> make_logit_adjustments(const SamplingParams& params,
                                                               const std::vector<int32_t>& eos_token_ids) {
  auto adjustments = std::make_shared<LogitAdjustments>();
  if (!is_greedy(params)) adjustments->min_p = params.min_p;  // the likeliest token always stays
  adjustments->repetition_penalty = params.repetition_penalty;
  adjustments->presence_penalty = params.presence_penalty;
  adjustments->frequency_penalty = params.frequency_penalty;
  std::copy_if(params.logit_bias.begin(), params.logit_bias.end(), std::back_inserter(adjustments->biases),
               [](const LogitBias& bias) { return bias.bias != 0; });
  std::sort(adjustments->biases.begin(), adjustments->biases.end(), has_smaller_id);
  adjustments->mask = TokenMask(params, eos_token_ids);
  if (!adjustments->changes_logits() && adjustments->mask.is_empty()) return nullptr;
  return adjustments;
}

const char* no_token_error(const LogitAdjustments* adjustments) {
  if (adjustments && !adjustments->mask.is_empty()) {
    return "no token can be sampled: allowed_token_ids, bad_words and min_tokens leave none, or the model's "
           "logits are not finite";
  }
  return "the model's logits are not finite; no token can be sampled";
}

void append_adjustments(Batch& batch, Sequence& request, MaskTable& masks) {
  static const LogitAdjustments kNone;
  const int32_t j = batch.num_sampled - 1;
  const LogitAdjustments& own = request.adjustments ? *request.adjustments : kNone;
  if (!batch.has_adjustments && own.changes_logits()) begin_adjustments(batch, j);
  if (batch.has_adjustments) {
    batch.min_p[j] = own.min_p;
    batch.repetition_penalty[j] = own.repetition_penalty;
    batch.presence_penalty[j] = own.presence_penalty;
    batch.frequency_penalty[j] = own.frequency_penalty;
    for (const LogitBias& bias : own.biases) {
      batch.bias_ids.push_back(bias.token_id);
      batch.biases.push_back(bias.bias);
    }
    batch.bias_offsets[j + 1] = static_cast<int32_t>(batch.bias_ids.size());
  }
  if (!request.adjustments) return;
  if (!own.mask.is_empty()) append_mask(batch, j, request, masks);
  if (own.has_penalties() && !request.has_written_tables) append_counts(batch, request);
  request.has_written_tables = true;
}

}  // namespace quire
