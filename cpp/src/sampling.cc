#include "quire/sampling.h"

#include <sstream>

#include "quire/error.h"
#include "quire/utf8.h"

namespace quire {
namespace {

template <typename T>
void require(bool holds, const char* field, const T& given, const std::string& allowed) {
  if (holds) return;
  std::ostringstream out;
  out << given;
  throw InvalidArgument(field, out.str(), allowed);
}

}  // namespace

uint64_t sequence_seed(uint64_t seed, uint32_t index) {
  if (index == 0) return seed;
  // SplitMix64 of the seed, index steps on, then mixed once more: neighbouring seeds share no sequence.
  uint64_t z = (seed ^ 0x6A09E667F3BCC909ULL) + index * 0x9E3779B97F4A7C15ULL;
  for (int i = 0; i < 2; ++i) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    z ^= z >> 31;
  }
  return z;
}

void validate(const SamplingParams& params, int32_t vocab_size) {
  require(params.n >= 1 && params.n <= kMaxSequences, "n", params.n, "1 to " + std::to_string(kMaxSequences));
  require(params.n == 1 || params.temperature > 0.0f, "n", std::to_string(params.n) + " with temperature 0",
          "1 (greedy: all sequences would be the same)");
  require(params.max_tokens >= 0, "max_tokens", params.max_tokens, "at least 1, or 0 (fill max_model_len)");
  require(params.min_tokens >= 0, "min_tokens", params.min_tokens, "at least 0");
  require(params.max_tokens == 0 || params.min_tokens <= params.max_tokens, "min_tokens", params.min_tokens,
          "at most max_tokens (" + std::to_string(params.max_tokens) + ")");
  // Written so that NaN is refused.
  require(params.temperature >= 0.0f && params.temperature <= 2.0f, "temperature", params.temperature,
          "[0, 2]");
  require(params.top_p > 0.0f && params.top_p <= 1.0f, "top_p", params.top_p, "(0, 1]");
  require(params.top_k >= -1, "top_k", params.top_k, "at least 1, or 0 or -1 (off)");
  for (const std::string& string : params.stop) {
    require(!string.empty(), "stop", "an empty string", "non-empty strings");
    require(is_valid_utf8(string), "stop", "invalid UTF-8", "UTF-8");
  }
  require(params.stop_token_ids.size() <= kMaxStopTokenIds, "stop_token_ids",
          std::to_string(params.stop_token_ids.size()) + " ids",
          "at most " + std::to_string(kMaxStopTokenIds) + " ids");
  for (int32_t id : params.stop_token_ids) {
    require(id >= 0 && id < vocab_size, "stop_token_ids", id, "0 to " + std::to_string(vocab_size - 1));
  }
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
  }
  return "unknown";
}

}  // namespace quire
