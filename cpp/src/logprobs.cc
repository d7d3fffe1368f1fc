#include "quire/logprobs.h"

#include <string>
#include <utility>

#include "quire/error.h"

namespace quire {
namespace {

// Writes `num` logprobs of a place: the token's own, then the likeliest.
void write_place(int32_t token_id, const LogprobRows& rows, int32_t row, uint32_t num, Logprob* out) {
  const auto i = static_cast<size_t>(row);
  out[0] = {token_id, rows.token_logprobs[i], rows.token_ranks[i]};
  for (uint32_t j = 1; j < num; ++j) {
    const size_t top = i * kMaxLogprobs + j - 1;
    out[j] = {rows.top_ids[top], rows.top_logprobs[top], static_cast<int32_t>(j)};
  }
}

}  // namespace

void LogprobRows::require(const char* field, int32_t num_rows) const {
  const auto num = static_cast<size_t>(num_rows);
  if (token_logprobs.size() >= num && token_ranks.size() >= num && top_ids.size() >= num * kMaxLogprobs &&
      top_logprobs.size() >= num * kMaxLogprobs) {
    return;
  }
  throw InvalidArgument(field, std::to_string(token_logprobs.size()) + " rows",
                        std::to_string(num) + " rows, as the batch asks for");
}

RequestLogprobs::RequestLogprobs(std::optional<int32_t> num_logprobs,
                                 std::optional<int32_t> num_prompt_logprobs, int32_t num_prompt_tokens)
    : num_per_id_(static_cast<uint32_t>(num_logprobs.value_or(-1) + 1)),
      num_per_prompt_place_(static_cast<uint32_t>(num_prompt_logprobs.value_or(-1) + 1)),
      prompt_(static_cast<size_t>(num_prompt_tokens - 1) * num_per_prompt_place_) {}

void RequestLogprobs::push(int32_t token_id, const LogprobRows& rows, int32_t row) {
  if (num_per_id_ == 0) return;
  held_.resize(held_.size() + num_per_id_);
  write_place(token_id, rows, row, num_per_id_, &held_[held_.size() - num_per_id_]);
}

void RequestLogprobs::set_prompt(int32_t place, int32_t token_id, const LogprobRows& rows, int32_t row) {
  const size_t begin = static_cast<size_t>(place) * num_per_prompt_place_;
  QUIRE_CHECK(begin + num_per_prompt_place_ <= prompt_.size(), "place " << place);
  write_place(token_id, rows, row, num_per_prompt_place_, &prompt_[begin]);
}

void RequestLogprobs::release(uint32_t num_ids, std::vector<Logprob>& out) {
  const size_t num = size_t{num_ids} * num_per_id_;
  QUIRE_CHECK(num <= held_.size(), num << " of " << held_.size());
  const auto end = held_.begin() + static_cast<std::ptrdiff_t>(num);
  for (size_t i = 0; i < num; i += num_per_id_) cumulative_logprob_ += held_[i].logprob;
  out.insert(out.end(), held_.begin(), end);
  held_.erase(held_.begin(), end);
}

void RequestLogprobs::release_prompt(std::vector<Logprob>& out) {
  out = std::exchange(prompt_, {});
  num_per_prompt_place_ = 0;
}

}  // namespace quire
