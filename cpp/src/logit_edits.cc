#include "quire/logit_edits.h"

#include <algorithm>
#include <iterator>
#include <span>

#include "quire/batch.h"
#include "quire/error.h"
#include "quire/request_state.h"

namespace quire {
namespace {

bool has_smaller_id(const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; }

// The first edits of a batch: neutral ones for the samples before.
void begin_edits(Batch& batch, int32_t num_before) {
  batch.has_edits = true;
  for_each_column([&](const auto& column) {
    if (column.part != Part::kEdits || column.length.is_list) return;
    std::fill_n((batch.*column.values).begin(), num_before + column.length.is_offsets, column.padding);
  });
}

// The request's row of token_counts.
void append_counts(Batch& batch, const RequestState& request) {
  const std::vector<int32_t>& ids = request.token_ids;
  if (batch.counted_rows.empty()) batch.counted_offsets.push_back(0);
  batch.counted_rows.push_back(request.row);
  batch.counted_prompt_lens.push_back(request.num_prompt_tokens);
  batch.counted_token_ids.insert(batch.counted_token_ids.end(), ids.begin(), ids.end());
  batch.counted_offsets.push_back(static_cast<int32_t>(batch.counted_token_ids.size()));
}

// Which tokens sample j, the request's, may give.
void append_mask(Batch& batch, int32_t j, const RequestState& request, MaskTable& masks) {
  const TokenMask& mask = request.edits->mask;
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

std::shared_ptr<const LogitEdits> make_logit_edits(const SamplingParams& params,
                                                   const std::vector<int32_t>& eos_token_ids) {
  auto edits = std::make_shared<LogitEdits>();
  if (!is_greedy(params)) edits->min_p = params.min_p;  // the likeliest token always stays
  edits->repetition_penalty = params.repetition_penalty;
  edits->presence_penalty = params.presence_penalty;
  edits->frequency_penalty = params.frequency_penalty;
  std::copy_if(params.logit_bias.begin(), params.logit_bias.end(), std::back_inserter(edits->biases),
               [](const LogitBias& bias) { return bias.bias != 0; });
  std::sort(edits->biases.begin(), edits->biases.end(), has_smaller_id);
  edits->mask = TokenMask(params, eos_token_ids);
  if (!edits->changes_logits() && edits->mask.is_empty()) return nullptr;
  return edits;
}

const char* no_token_error(const LogitEdits* edits) {
  if (edits && !edits->mask.is_empty()) {
    return "no token can be sampled: allowed_token_ids, bad_words and min_tokens leave none, or the model's "
           "logits are not finite";
  }
  return "the model's logits are not finite; no token can be sampled";
}

void append_edits(Batch& batch, RequestState& request, MaskTable& masks) {
  static const LogitEdits kNone;
  const int32_t j = batch.num_sampled - 1;
  const LogitEdits& own = request.edits ? *request.edits : kNone;
  if (!batch.has_edits && own.changes_logits()) begin_edits(batch, j);
  if (batch.has_edits) {
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
  if (!request.edits) return;
  if (!own.mask.is_empty()) append_mask(batch, j, request, masks);
  if (own.has_penalties() && !request.has_written_tables) append_counts(batch, request);
  request.has_written_tables = true;
}

}  // namespace quire
