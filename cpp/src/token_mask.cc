#include "quire/token_mask.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace quire {
namespace {

void clear_bit(std::span<uint32_t> mask, int32_t id) {
  mask[static_cast<size_t>(id / 32)] &= ~(1u << (id % 32));
}

// min_tokens: the ids at which the request would end.
class EndIds final : public MaskSource {
 public:
  EndIds(std::vector<int32_t> ids, int32_t min_tokens) : ids_(std::move(ids)), min_tokens_(min_tokens) {}

  bool forbids(const OutputPlace& place) const override { return place.output_idx < min_tokens_; }
  bool changes(const OutputPlace& place) const override { return place.output_idx == min_tokens_; }
  void apply(const OutputPlace&, std::span<uint32_t> mask) const override {
    for (const int32_t id : ids_) clear_bit(mask, id);
  }

 private:
  std::vector<int32_t> ids_;
  int32_t min_tokens_;
};

// The last id of each word whose other ids the output ends with; always, for words of one id.
class BadWords final : public MaskSource {
 public:
  explicit BadWords(std::vector<std::vector<int32_t>> words) : words_(std::move(words)) {}

  bool forbids(const OutputPlace& place) const override {
    return any([&](const auto& word) { return is_almost_complete(word, place.output); });
  }
  bool changes(const OutputPlace& place) const override {
    if (!needs_output()) return false;  // words of one id; the output need not be known
    const auto before = place.output.first(place.output.size() - 1);
    return any([&](const auto& word) {
      return is_almost_complete(word, place.output) != is_almost_complete(word, before);
    });
  }
  void apply(const OutputPlace& place, std::span<uint32_t> mask) const override {
    for (const auto& word : words_) {
      if (is_almost_complete(word, place.output)) clear_bit(mask, word.back());
    }
  }
  bool needs_output() const override {
    return any([](const auto& word) { return word.size() > 1; });
  }

 private:
  template <typename Is>
  bool any(Is is) const {
    return std::any_of(words_.begin(), words_.end(), is);
  }
  static bool is_almost_complete(const std::vector<int32_t>& word, std::span<const int32_t> output) {
    const size_t num_before = word.size() - 1;
    return output.size() >= num_before &&
           std::equal(word.begin(), word.end() - 1, output.end() - static_cast<std::ptrdiff_t>(num_before));
  }

  std::vector<std::vector<int32_t>> words_;
};

// All tokens but these.
class AllowedIds final : public MaskSource {
 public:
  explicit AllowedIds(const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) {
      const auto word = static_cast<size_t>(id / 32);
      if (word >= words_.size()) words_.resize(word + 1, 0);
      words_[word] |= 1u << (id % 32);
    }
  }

  bool forbids(const OutputPlace&) const override { return true; }
  bool changes(const OutputPlace&) const override { return false; }
  void apply(const OutputPlace&, std::span<uint32_t> mask) const override {
    for (size_t i = 0; i < mask.size(); ++i) mask[i] &= i < words_.size() ? words_[i] : 0;
  }

 private:
  std::vector<uint32_t> words_;  // up to the last id's
};

}  // namespace

TokenMask::TokenMask(const SamplingParams& params, const std::vector<int32_t>& eos_token_ids) {
  std::vector<int32_t> end_ids = params.stop_token_ids;
  end_ids.insert(end_ids.end(), eos_token_ids.begin(), eos_token_ids.end());
  if (params.min_tokens > 0 && !end_ids.empty()) {
    sources_.push_back(std::make_unique<EndIds>(std::move(end_ids), params.min_tokens));
  }
  if (!params.bad_word_ids.empty()) sources_.push_back(std::make_unique<BadWords>(params.bad_word_ids));
  if (!params.allowed_token_ids.empty()) {
    sources_.push_back(std::make_unique<AllowedIds>(params.allowed_token_ids));
  }
}

bool TokenMask::forbids(const OutputPlace& place) const {
  return std::any_of(sources_.begin(), sources_.end(), [&](const auto& s) { return s->forbids(place); });
}

bool TokenMask::changes(const OutputPlace& place) const {
  return std::any_of(sources_.begin(), sources_.end(), [&](const auto& s) { return s->changes(place); });
}

bool TokenMask::needs_output() const {
  return std::any_of(sources_.begin(), sources_.end(), [](const auto& s) { return s->needs_output(); });
}

void TokenMask::fill(const OutputPlace& place, std::span<uint32_t> mask) const {
  std::fill(mask.begin(), mask.end(), ~0u);
  for (const auto& source : sources_) {
    if (source->forbids(place)) source->apply(place, mask);
  }
}

void MaskTable::write(int32_t row, const TokenMask& mask, const OutputPlace& place,
                      std::vector<int32_t>& updates) {
  if (words_.empty()) {
    words_.resize(static_cast<size_t>(num_rows_) * static_cast<size_t>(num_words_));
    is_known_.resize(static_cast<size_t>(num_rows_));
    wanted_.resize(static_cast<size_t>(num_words_));
  }
  mask.fill(place, wanted_);
  const int32_t first = row * num_words_;
  uint32_t* const words = words_.data() + first;
  const bool is_known = is_known_[static_cast<size_t>(row)];
  for (int32_t i = 0; i < num_words_; ++i) {
    if (is_known && words[i] == wanted_[static_cast<size_t>(i)]) continue;
    words[i] = wanted_[static_cast<size_t>(i)];
    updates.push_back(first + i);
    updates.push_back(std::bit_cast<int32_t>(words[i]));
  }
  is_known_[static_cast<size_t>(row)] = true;
}

}  // namespace quire
