#include "quire/sampling.h"

#include <algorithm>
#include <sstream>
#include <type_traits>

#include "quire/error.h"
#include "quire/utf8.h"

namespace quire {
namespace {

// allowed: text, or a function that makes it where it is needed.
template <typename T, typename Allowed>
void require(bool holds, const char* field, const T& given, const Allowed& allowed) {
  if (holds) return;
  std::ostringstream out;
  out << given;
  if constexpr (std::is_invocable_v<Allowed>) {
    throw InvalidArgument(field, out.str(), allowed());
  } else {
    throw InvalidArgument(field, out.str(), allowed);
  }
}

void require_ids(const char* field, const std::vector<int32_t>& ids, int32_t vocab_size) {
  for (const int32_t id : ids) {
    require(id >= 0 && id < vocab_size, field, id, [&] { return "0 to " + std::to_string(vocab_size - 1); });
  }
}

void require_count(const char* field, size_t count, int32_t limit, const char* what) {
  require(count <= static_cast<size_t>(limit), field, std::to_string(count) + " " + what,
          "at most " + std::to_string(limit) + " " + what);
}

void validate_stop(const std::vector<std::string>& stop) {
  require_stop_size(stop.size(), [&](size_t i) { return stop[i].size(); });
  for (const std::string& string : stop) {
    require(!string.empty(), "stop", "an empty string", "non-empty strings");
    require(is_valid_utf8(string), "stop", "invalid UTF-8", "UTF-8");
  }
}

void validate_logit_bias(const std::vector<LogitBias>& logit_bias, int32_t vocab_size) {
  require_count("logit_bias", logit_bias.size(), kMaxLogitBias, "ids");
  std::vector<int32_t> ids;
  ids.reserve(logit_bias.size());
  for (const auto& [id, bias] : logit_bias) {
    require(bias >= -100.0f && bias <= 100.0f, "logit_bias", bias, "[-100, 100]");
    ids.push_back(id);
  }
  require_ids("logit_bias", ids, vocab_size);
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) {
    throw InvalidArgument("logit_bias", "the id " + std::to_string(*twice) + " twice", "each id once");
  }
}

}  // namespace

uint64_t mix_bits(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

uint64_t sequence_seed(uint64_t seed, uint32_t index) {
  if (index == 0) return seed;
  // The seed, index steps on, mixed twice: neighbouring seeds share no sequence.
  return mix_bits(mix_bits((seed ^ 0x6A09E667F3BCC909ULL) + index * kSeedStep));
}

void validate_together(const SamplingParams& params) {
  require(params.max_tokens == 0 || params.min_tokens <= params.max_tokens, "min_tokens", params.min_tokens,
          [&] { return "at most max_tokens (" + std::to_string(params.max_tokens) + ")"; });
  if (params.n > 1 && is_greedy(params)) {
    std::ostringstream given;
    given << params.n << " with temperature " << params.temperature;
    throw InvalidArgument("n", given.str(), "1 (greedy: all sequences would be the same)");
  }
  require(params.detokenize || params.stop.empty(), "stop", "stop strings with detokenize false",
          "none (without text no stop string can be found)");
}

void validate(const SamplingParams& params, int32_t vocab_size) {
  for_each_member<SamplingParams>([&](const auto& member) {
    const bool is_given = member.name != std::string_view("max_tokens") || params.max_tokens != 0;
    if (is_given) require_in_range(member.name, member.name, params.*member.pointer);
  });
  validate_together(params);
  validate_logit_bias(params.logit_bias, vocab_size);
  require_count("allowed_token_ids", params.allowed_token_ids.size(), vocab_size, "ids");
  require_ids("allowed_token_ids", params.allowed_token_ids, vocab_size);
  require_count("bad_words", params.bad_word_ids.size(), kMaxBadWords, "sequences of ids");
  size_t num_bad_word_ids = 0;
  for (const std::vector<int32_t>& ids : params.bad_word_ids) num_bad_word_ids += ids.size();
  require_count("bad_words", num_bad_word_ids, kMaxBadWordIds, "ids");
  for (const std::vector<int32_t>& ids : params.bad_word_ids) {
    require(!ids.empty(), "bad_words", "a sequence of no ids", "at least one id in each");
    require_ids("bad_words", ids, vocab_size);
  }
  // Before its characters are looked at, of which each has at most 4 bytes.
  require_count("cache_salt", params.cache_salt.size(), 4 * kMaxCacheSaltLength, "bytes");
  require(is_valid_utf8(params.cache_salt), "cache_salt", "invalid UTF-8", "UTF-8");
  const auto is_start = [](char byte) { return (byte & 0xC0) != 0x80; };
  const auto length = std::count_if(params.cache_salt.begin(), params.cache_salt.end(), is_start);
  require_count("cache_salt", static_cast<size_t>(length), kMaxCacheSaltLength, "characters");
  validate_stop(params.stop);
  require_count("stop_token_ids", params.stop_token_ids.size(), kMaxStopTokenIds, "ids");
  require_ids("stop_token_ids", params.stop_token_ids, vocab_size);
}

void require_a_token(const SamplingParams& params, const std::vector<int32_t>& eos_token_ids,
                     int32_t vocab_size) {
  std::vector<int32_t> forbidden;
  for (const std::vector<int32_t>& ids : params.bad_word_ids) {
    if (ids.size() == 1) forbidden.push_back(ids[0]);
  }
  if (params.min_tokens > 0) {
    forbidden.insert(forbidden.end(), params.stop_token_ids.begin(), params.stop_token_ids.end());
    forbidden.insert(forbidden.end(), eos_token_ids.begin(), eos_token_ids.end());
  }
  std::sort(forbidden.begin(), forbidden.end());
  forbidden.erase(std::unique(forbidden.begin(), forbidden.end()), forbidden.end());
  const auto& allowed = params.allowed_token_ids;
  const auto is_forbidden = [&](int32_t id) {
    return std::binary_search(forbidden.begin(), forbidden.end(), id);
  };
  const bool has_any = allowed.empty() ? forbidden.size() < static_cast<size_t>(vocab_size)
                                       : !std::all_of(allowed.begin(), allowed.end(), is_forbidden);
  if (has_any) return;
  const char* field = !allowed.empty()               ? "allowed_token_ids"
                      : !params.bad_word_ids.empty() ? "bad_words"
                                                     : "min_tokens";
  const char* given = allowed.empty() ? "every token forbidden" : "only tokens that are forbidden";
  throw InvalidArgument(
      field,
      std::string(given) + " (bad_words forbids its words, min_tokens the end-of-sequence and stop tokens)",
      "at least one token that may come first");
}

const char* to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
    case FinishReason::kDeadline:
      return "deadline";
  }
  return "unknown";
}

}  // namespace quire
