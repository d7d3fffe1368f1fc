#include "quire/logit_edits.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <span>

#include "quire/batch.h"
#include "quire/error.h"
#include "quire/request_state.h"

namespace quire {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

bool has_smaller_id(const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; }

// logit_bias and the bad words of one id.
std::vector<LogitBias> static_biases(const SamplingParams& params) {
  std::vector<LogitBias> biases;
  for (const std::vector<int32_t>& ids : params.bad_word_ids) {
    if (ids.size() == 1) biases.push_back({ids[0], kMinusInf});
  }
  for (const LogitBias& bias : params.logit_bias) {
    if (bias.bias != 0) biases.push_back(bias);
  }
  // Bad words come first among equals, and stay.
  std::stable_sort(biases.begin(), biases.end(), has_smaller_id);
  const auto is_same = [](const LogitBias& a, const LogitBias& b) { return a.token_id == b.token_id; };
  biases.erase(std::unique(biases.begin(), biases.end(), is_same), biases.end());
  return biases;
}

// Whether the output ends with all ids of the word but the last.
bool is_almost_complete(std::span<const int32_t> output, const std::vector<int32_t>& word) {
  const size_t num_before = word.size() - 1;
  return output.size() >= num_before && std::equal(word.begin(), word.end() - 1, output.end() - num_before);
}

void append_biases(Batch& batch, const LogitEdits& own, std::span<const int32_t> output) {
  const auto begin = static_cast<std::ptrdiff_t>(batch.bias_ids.size());
  for (const LogitBias& bias : own.biases) {
    batch.bias_ids.push_back(bias.token_id);
    batch.biases.push_back(bias.bias);
  }
  for (const std::vector<int32_t>& word : own.bad_words) {
    if (!is_almost_complete(output, word)) continue;
    const auto found = std::lower_bound(batch.bias_ids.begin() + begin, batch.bias_ids.end(), word.back());
    const auto place = batch.biases.begin() + (found - batch.bias_ids.begin());
    if (found != batch.bias_ids.end() && *found == word.back()) {
      *place = kMinusInf;
    } else {
      batch.biases.insert(place, kMinusInf);
      batch.bias_ids.insert(found, word.back());
    }
  }
}

// The first edits of a batch: neutral ones for the samples before.
void begin_edits(Batch& batch, int32_t num_before) {
  batch.has_edits = true;
  for_each_column([&](const auto& column) {
    if (column.part != Part::kEdits || column.length.is_list) return;
    std::fill_n((batch.*column.values).begin(), num_before + column.length.is_offsets, column.padding);
  });
}

// The request's rows of the samplers' tables.
void append_rows(Batch& batch, const RequestState& request, int32_t vocab_size) {
  const LogitEdits& own = *request.edits;
  if (own.has_penalties()) {
    const std::vector<int32_t>& ids = request.token_ids;
    if (batch.counted_rows.empty()) batch.counted_offsets.push_back(0);
    batch.counted_rows.push_back(request.row);
    batch.counted_prompt_lens.push_back(request.num_prompt_tokens);
    batch.counted_token_ids.insert(batch.counted_token_ids.end(), ids.begin(), ids.end());
    batch.counted_offsets.push_back(static_cast<int32_t>(batch.counted_token_ids.size()));
  }
  if (!own.allowed_mask.empty()) {
    const size_t begin = batch.masks.size();
    batch.masked_rows.push_back(request.row);
    batch.masks.insert(batch.masks.end(), own.allowed_mask.begin(), own.allowed_mask.end());
    batch.masks.resize(begin + static_cast<size_t>(num_mask_words(vocab_size)), 0);
  }
}

}  // namespace

std::shared_ptr<const LogitEdits> make_logit_edits(const SamplingParams& params) {
  LogitEdits edits;
  if (!is_greedy(params)) edits.min_p = params.min_p;  // the likeliest token always stays
  edits.repetition_penalty = params.repetition_penalty;
  edits.presence_penalty = params.presence_penalty;
  edits.frequency_penalty = params.frequency_penalty;
  edits.biases = static_biases(params);
  std::copy_if(params.bad_word_ids.begin(), params.bad_word_ids.end(), std::back_inserter(edits.bad_words),
               [](const std::vector<int32_t>& ids) { return ids.size() > 1; });
  for (const int32_t id : params.allowed_token_ids) {
    const auto word = static_cast<size_t>(id / 32);
    if (word >= edits.allowed_mask.size()) edits.allowed_mask.resize(word + 1, 0);
    edits.allowed_mask[word] |= 1u << (id % 32);
  }
  const bool has_any = edits.min_p > 0 || edits.has_penalties() || !edits.biases.empty() ||
                       !edits.bad_words.empty() || !edits.allowed_mask.empty();
  return has_any ? std::make_shared<const LogitEdits>(std::move(edits)) : nullptr;
}

const char* no_token_error(const LogitEdits* edits) {
  if (edits && !(edits->biases.empty() && edits->bad_words.empty() && edits->allowed_mask.empty())) {
    return "no token can be sampled: allowed_token_ids, bad_words and min_tokens leave none, or the model's "
           "logits are not finite";
  }
  return "the model's logits are not finite; no token can be sampled";
}

void append_edits(Batch& batch, RequestState& request, int32_t vocab_size) {
  const int32_t j = batch.num_sampled - 1;
  if (!batch.has_edits) begin_edits(batch, j);
  static const LogitEdits kNone;
  const LogitEdits& own = request.edits ? *request.edits : kNone;
  batch.min_p[j] = own.min_p;
  batch.repetition_penalty[j] = own.repetition_penalty;
  batch.presence_penalty[j] = own.presence_penalty;
  batch.frequency_penalty[j] = own.frequency_penalty;
  batch.allowed_rows[j] = own.allowed_mask.empty() ? -1 : request.row;
  if (request.edits) {
    QUIRE_CHECK(own.bad_words.empty() || request.num_pending_ids == 1,
                "request " << request.request_id << ": " << request.num_pending_ids << " ids pending");
    const auto output = std::span(request.token_ids).subspan(static_cast<size_t>(request.num_prompt_tokens));
    append_biases(batch, own, output);
    if (!request.has_written_edits) append_rows(batch, request, vocab_size);
    request.has_written_edits = true;
  }
  batch.bias_offsets[j + 1] = static_cast<int32_t>(batch.bias_ids.size());
}

}  // namespace quire
