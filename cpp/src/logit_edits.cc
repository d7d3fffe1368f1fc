#include "quire/logit_edits.h"

#include <algorithm>
#include <cstring>
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

void append_biases(BatchEdits& edits, const LogitEdits& own, std::span<const int32_t> output) {
  const auto begin = static_cast<std::ptrdiff_t>(edits.bias_ids.size());
  for (const LogitBias& bias : own.biases) {
    edits.bias_ids.push_back(bias.token_id);
    edits.biases.push_back(bias.bias);
  }
  for (const std::vector<int32_t>& word : own.bad_words) {
    if (!is_almost_complete(output, word)) continue;
    const auto found = std::lower_bound(edits.bias_ids.begin() + begin, edits.bias_ids.end(), word.back());
    const auto place = edits.biases.begin() + (found - edits.bias_ids.begin());
    if (found != edits.bias_ids.end() && *found == word.back()) {
      *place = kMinusInf;
    } else {
      edits.biases.insert(place, kMinusInf);
      edits.bias_ids.insert(found, word.back());
    }
  }
}

// The first edits of a batch: neutral ones for the samples before.
void begin_edits(BatchEdits& edits, size_t num_before) {
  edits.is_empty = false;
  edits.min_p.assign(num_before, 0.0f);
  edits.repetition_penalty.assign(num_before, 1.0f);
  edits.presence_penalty.assign(num_before, 0.0f);
  edits.frequency_penalty.assign(num_before, 0.0f);
  edits.allowed_rows.assign(num_before, -1);
  edits.bias_offsets.assign(num_before + 1, 0);
  edits.bias_ids.clear();
  edits.biases.clear();
  edits.counted_rows.clear();
  edits.counted_offsets.assign(1, 0);
  edits.counted_prompt_lens.clear();
  edits.counted_token_ids.clear();
  edits.masked_rows.clear();
  edits.masks.clear();
}

// The request's rows of the samplers' tables.
void append_rows(BatchEdits& edits, const RequestState& request, int32_t vocab_size) {
  const LogitEdits& own = *request.edits;
  if (own.has_penalties()) {
    const std::vector<int32_t>& ids = request.token_ids;
    edits.counted_rows.push_back(request.row);
    edits.counted_prompt_lens.push_back(request.num_prompt_tokens);
    edits.counted_token_ids.insert(edits.counted_token_ids.end(), ids.begin(), ids.end());
    edits.counted_offsets.push_back(static_cast<int32_t>(edits.counted_token_ids.size()));
  }
  if (!own.allowed_mask.empty()) {
    const size_t begin = edits.masks.size();
    edits.masked_rows.push_back(request.row);
    edits.masks.insert(edits.masks.end(), own.allowed_mask.begin(), own.allowed_mask.end());
    edits.masks.resize(begin + static_cast<size_t>(num_mask_words(vocab_size)), 0);
  }
}

// visit(data, number of elements) for every array of the tables' rows; all elements have 4 bytes.
template <typename Visit>
void for_each_table_row_array(const BatchEdits& edits, Visit visit) {
  const auto visit_all = [&](const auto&... arrays) { (visit(arrays.data(), arrays.size()), ...); };
  visit_all(edits.counted_rows, edits.counted_offsets, edits.counted_prompt_lens, edits.counted_token_ids,
            edits.masked_rows, edits.masks);
}

}  // namespace

const std::array<const char*, kNumTableRowArrays> kTableRowArrayNames = {
    "counted_rows", "counted_offsets", "counted_prompt_lens", "counted_token_ids", "masked_rows", "masks",
};

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
  BatchEdits& edits = batch.edits;
  if (edits.is_empty) begin_edits(edits, static_cast<size_t>(batch.num_sampled - 1));
  const LogitEdits* own = request.edits.get();
  const bool is_restricted = own && !own->allowed_mask.empty();
  edits.min_p.push_back(own ? own->min_p : 0.0f);
  edits.repetition_penalty.push_back(own ? own->repetition_penalty : 1.0f);
  edits.presence_penalty.push_back(own ? own->presence_penalty : 0.0f);
  edits.frequency_penalty.push_back(own ? own->frequency_penalty : 0.0f);
  edits.allowed_rows.push_back(is_restricted ? request.row : -1);
  if (own) {
    QUIRE_CHECK(own->bad_words.empty() || request.num_pending_ids == 1,
                "request " << request.request_id << ": " << request.num_pending_ids << " ids pending");
    const auto output = std::span(request.token_ids).subspan(static_cast<size_t>(request.num_prompt_tokens));
    append_biases(edits, *own, output);
    if (!request.has_written_edits) append_rows(edits, request, vocab_size);
    request.has_written_edits = true;
  }
  edits.bias_offsets.push_back(static_cast<int32_t>(edits.bias_ids.size()));
}

TableRowsLayout table_rows_layout(const BatchEdits& edits) {
  TableRowsLayout layout;
  if (edits.counted_rows.empty() && edits.masked_rows.empty()) return layout;
  int index = 0;
  for_each_table_row_array(edits, [&](const auto* data, size_t count) {
    layout.offsets[index++] = layout.num_bytes;
    const auto num_bytes = static_cast<int64_t>(count * sizeof(*data));
    layout.num_bytes += (num_bytes + kTableRowsAlignment - 1) / kTableRowsAlignment * kTableRowsAlignment;
  });
  return layout;
}

void pack_table_rows(const BatchEdits& edits, void* buffer) {
  const TableRowsLayout layout = table_rows_layout(edits);
  if (layout.num_bytes == 0) return;
  int index = 0;
  for_each_table_row_array(edits, [&](const auto* data, size_t count) {
    if (count > 0)
      std::memcpy(static_cast<char*>(buffer) + layout.offsets[index], data, count * sizeof(*data));
    ++index;
  });
}

}  // namespace quire
