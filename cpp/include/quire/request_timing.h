// Where the time of a request went, and what was computed for it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

namespace quire {

// Why the head of the waiting queue, and everything after it, was not admitted in a step.
enum class WaitReason : uint8_t { kRows = 0, kBlocks = 1, kTokenBudget = 2, kNone = 3 };
constexpr size_t kNumWaitReasons = 3;  // kNone is not counted

// What has happened to a request so far. Changes when it is admitted, preempted, or has its first token;
// never per token.
struct RequestHistory {
  int64_t admitted_ns = 0;     // the first time; 0: never
  int64_t first_token_ns = 0;  // 0: none yet
  uint32_t num_preemptions = 0;
  int32_t num_found_tokens = 0;       // of the prompt, in the cache or at a sibling, at the first admission
  int32_t num_reached_tokens = 0;     // the most that had their KV at once
  int32_t num_recomputed_tokens = 0;  // had it, lost it, and get it again: up to num_reached_tokens
  // Steps by WaitReason. While it waits, less the scheduler's counts at the time when it began to.
  std::array<uint64_t, kNumWaitReasons> waits = {};

  // It had the KV of num_tokens tokens until now.
  void leave_at(int32_t num_tokens) {
    num_recomputed_tokens -= std::max(num_reached_tokens - num_tokens, 0);
    num_reached_tokens = std::max(num_reached_tokens, num_tokens);
  }
  // It goes on from num_tokens tokens that it found in the cache, or at a sibling.
  void enter_at(int32_t num_tokens, int64_t now_ns) {
    if (admitted_ns == 0) admitted_ns = now_ns;
    if (num_reached_tokens == 0) num_reached_tokens = num_found_tokens = num_tokens;
    num_recomputed_tokens += std::max(num_reached_tokens - num_tokens, 0);
  }
};

// Times are of CLOCK_MONOTONIC, in ns, each at least the one before: arrival, + tokenize_ns, admitted,
// first_token, end. A stage that the request never reached begins and ends with the end.
struct RequestTiming {
  int64_t arrival_ns = 0;
  int64_t tokenize_ns = 0;     // spent in the tokenizer stage
  int64_t admitted_ns = 0;     // the first time
  int64_t first_token_ns = 0;  // known to the engine
  int64_t end_ns = 0;          // of the request in the engine
  uint32_t num_prompt_tokens = 0;
  uint32_t num_output_tokens = 0;
  uint32_t num_cached_tokens = 0;      // found in the prefix cache, or at a sibling, at the first admission
  uint32_t num_computed_tokens = 0;    // each once
  uint32_t num_recomputed_tokens = 0;  // again, after a preemption
  uint32_t num_preemptions = 0;
  std::array<uint32_t, kNumWaitReasons> waits = {};  // steps, by WaitReason
  uint32_t reserved = 0;                             // 0; no padding: timings are copied as bytes
};
static_assert(sizeof(RequestTiming) == 80, "no padding: copied as bytes");

// A JSON object. text_ns: when the text was made, the end of the last stage. The stages' times, in ms with
// three digits, add up to total_ms exactly.
std::string to_json(const RequestTiming& timing, int64_t text_ns);

}  // namespace quire
