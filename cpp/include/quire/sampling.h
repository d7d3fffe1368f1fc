// What a request may ask of sampling and of stopping. Names, ranges and limits: fields.h.
#pragma once

#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "quire/error.h"
#include "quire/fields.h"
#include "quire/members.h"

namespace quire {

struct LogitBias {
  int32_t token_id = 0;
  float bias = 0;  // added to the token's logit
};

struct SamplingParams {
  int32_t n = 1;                           // sequences of one prompt, at most kMaxSequences; 1 when greedy
  int32_t max_tokens = 0;                  // 0: fill the context up to max_model_len
  int32_t min_tokens = 0;                  // end-of-sequence and stop tokens are masked before this many
  float temperature = 1.0f;                // [0, 2]; below kGreedyTemperature: greedy
  float top_p = 1.0f;                      // (0, 1]
  int32_t top_k = 0;                       // 0 or -1: off
  float min_p = 0;                         // [0, 1]; 0: off
  float presence_penalty = 0;              // [-2, 2]
  float frequency_penalty = 0;             // [-2, 2]
  float repetition_penalty = 1;            // (0, inf)
  std::vector<LogitBias> logit_bias;       // ids in [0, vocab_size), each once; bias in [-100, 100];
                                           // at most kMaxLogitBias
  std::vector<int32_t> allowed_token_ids;  // in [0, vocab_size), at most so many; empty: all
  std::vector<std::vector<int32_t>> bad_word_ids;  // sequences of ids that are never completed; none
                                                   // empty, at most kMaxBadWords with kMaxBadWordIds ids
  std::optional<int64_t> seed;  // same seed, prompt and engine: same tokens; drawn at intake when not given
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  bool include_stop_str_in_output = false;
  std::vector<std::string> stop;           // non-empty strings, UTF-8; sizes: require_stop_size()
  std::vector<int32_t> stop_token_ids;     // in [0, vocab_size); at most kMaxStopTokenIds
  std::optional<int32_t> logprobs;         // of each sampled token and of so many likeliest ones
  std::optional<int32_t> prompt_logprobs;  // the same of the prompt's tokens
  bool detokenize = true;                  // false: ids only, no text; no stop strings then
  int32_t stream_interval = 1;             // tokens that a run has at least, but for the first and the last
  std::string cache_salt;                  // prefixes are shared among requests of one salt; UTF-8, at most
                                           // kMaxCacheSaltLength
};
QUIRE_MEMBERS(SamplingParams,
              QUIRE_OPTIONAL(n, max_tokens, min_tokens, temperature, top_p, top_k, min_p, presence_penalty,
                             frequency_penalty, repetition_penalty, logit_bias, allowed_token_ids,
                             bad_word_ids, seed, ignore_eos, skip_special_tokens, include_stop_str_in_output,
                             stop, stop_token_ids, logprobs, prompt_logprobs, detokenize, stream_interval,
                             cache_salt));

// SplitMix64: a state that grows by kSeedStep, mixed, is a full-period sequence.
constexpr uint64_t kSeedStep = 0x9E3779B97F4A7C15ULL;
uint64_t mix_bits(uint64_t state);
// The seed of sequence `index` of a request with `seed`; that of sequence 0 is `seed`.
uint64_t sequence_seed(uint64_t seed, uint32_t index);

// Whether the likeliest token is always taken.
inline bool is_greedy(const SamplingParams& params) { return params.temperature < kGreedyTemperature; }

// Throws InvalidArgument where stop strings are too many, too long, or too long together: what they cost is
// theirs, but the time in which an engine prepares for them is everybody's. size_of(i): bytes of string i of
// `count`.
template <typename SizeOf>
void require_stop_size(size_t count, SizeOf&& size_of) {
  const auto refuse = [](const std::string& given) {
    throw InvalidArgument("stop", given, fields::kStopAllowed);
  };
  if (count > kMaxStop) refuse(std::to_string(count) + " of them");
  size_t num_bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t size = size_of(i);
    if (size > kMaxStopLength) refuse("a string of " + std::to_string(size) + " bytes");
    num_bytes += size;
  }
  if (num_bytes > kMaxStopBytes) refuse(std::to_string(num_bytes) + " bytes together");
}

// Throws InvalidArgument where values that are good alone do not go together.
void validate_together(const SamplingParams& params);

// Throws InvalidArgument where the schema of request fields does not allow this number for the field `name`;
// other values pass. spelled: the name for the error.
template <class T>
void require_in_range(std::string_view name, const std::string& spelled, const T& value) {
  [[maybe_unused]] const auto check = [&](const auto& table, auto number) {
    for (const auto* field : table) {
      if (name != field->name || field->contains(number)) continue;
      std::ostringstream given;
      given << number;
      throw InvalidArgument(spelled, given.str(), field->allowed);
    }
  };
  if constexpr (std::is_same_v<T, std::optional<int32_t>>) {
    if (value) require_in_range(name, spelled, *value);
  } else if constexpr (std::is_same_v<T, int32_t>) {
    check(fields::kIntFields, value);
  } else if constexpr (std::is_same_v<T, float>) {
    check(fields::kFloatFields, value);
  }
}

// Throws InvalidArgument that names the field, also where values do not go together. Does not modify.
void validate(const SamplingParams& params, int32_t vocab_size);

// Throws InvalidArgument where the request forbids every token that it may begin with: by allowed_token_ids,
// bad words of one id, and end tokens before min_tokens. params: valid.
void require_a_token(const SamplingParams& params, const std::vector<int32_t>& eos_token_ids,
                     int32_t vocab_size);

enum class FinishReason : uint8_t {
  kNone = 0,
  kStop = 1,
  kLength = 2,
  kCancelled = 3,
  kError = 4,
  kDeadline = 5,
};
constexpr FinishReason kLastFinishReason = FinishReason::kDeadline;

// "", "stop", "length", "cancelled", "error", "deadline".
const char* to_string(FinishReason reason);

}  // namespace quire
