// EngineCore: what it counts and observes, the rows of engine_metrics.def.
#include <algorithm>
#include <cstdint>
#include <functional>

#include "quire/engine_core.h"

namespace quire {
namespace {

// Clients may name a time that has not come.
double seconds(int64_t nanoseconds) { return static_cast<double>(std::max<int64_t>(nanoseconds, 0)) * 1e-9; }

}  // namespace

void EngineCore::observe(StepOutputs& out, Histogram histogram, double value) const {
  if (!config_.disable_log_stats) out.observe(histogram, value);
}

void EngineCore::report(const std::function<void(EngineStats&)>& set) {
  set(scheduler_.totals());
  set(outputs_.stats);
}

void EngineCore::observe_step_host(int64_t nanoseconds) {
  observe(outputs_, Histogram::kStepHost, seconds(nanoseconds));
}

// A step gives the sequence tokens, one or several.
void EngineCore::count_tokens(LiveSequence& sequence, int64_t now_ns) {
  if (sequence.last_token_ns == 0) {
    sequence.history->first_token_ns = now_ns;
    count_first_token(sequence);
    observe(outputs_, Histogram::kTimeToFirstToken, seconds(now_ns - sequence.cold.arrival_ns));
  } else {
    observe(outputs_, Histogram::kInterToken, seconds(now_ns - sequence.last_token_ns));
  }
  sequence.last_token_ns = now_ns;
}

// The last token of a fork's prompt is computed again, to sample after it, but its KV is its sibling's.
void EngineCore::count_first_token(LiveSequence& sequence) {
  const int32_t num_cached =
      sequence.is_forked ? sequence.num_prompt_tokens : sequence.history->num_found_tokens;
  sequence.cold.num_cached_prompt_tokens = num_cached;
  EngineStats& totals = scheduler_.totals();
  totals.num_prompt_tokens += static_cast<uint64_t>(sequence.num_prompt_tokens);
  totals.num_cached_prompt_tokens += static_cast<uint64_t>(num_cached);
  totals.num_computed_prompt_tokens += static_cast<uint64_t>(sequence.num_prompt_tokens - num_cached);
}

void EngineCore::count_end(const LiveSequence& sequence, FinishReason reason, StepOutputs& out) {
  EngineStats& totals = scheduler_.totals();
  totals.num_stopped += reason == FinishReason::kStop;
  totals.num_at_length += reason == FinishReason::kLength;
  totals.num_failed += reason == FinishReason::kError;
  totals.num_aborted += reason == FinishReason::kCancelled || reason == FinishReason::kDeadline;

  Siblings of_request = {1, 1, 0};
  Siblings& siblings = sequence.cold.siblings ? *sequence.cold.siblings : of_request;
  siblings.num_longest_output = std::max(siblings.num_longest_output, sequence.num_output_tokens());
  --siblings.num_unfinished;
  // As in vLLM, requests that end early are counted but not timed.
  if (!is_success(reason) || config_.disable_log_stats) return;

  const RequestTiming timing = make_timing(sequence, {}, sequence.last_token_ns);
  const double decode = seconds(timing.end_ns - timing.first_token_ns);
  const uint32_t num_later_tokens = timing.num_output_tokens - 1;
  out.observe(Histogram::kEndToEnd, seconds(timing.end_ns - timing.arrival_ns));
  out.observe(Histogram::kQueueTime, seconds(timing.admitted_ns - timing.arrival_ns - timing.tokenize_ns));
  out.observe(Histogram::kPrefillTime, seconds(timing.first_token_ns - timing.admitted_ns));
  out.observe(Histogram::kDecodeTime, decode);
  out.observe(Histogram::kInferenceTime, seconds(timing.end_ns - timing.admitted_ns));
  out.observe(Histogram::kTimePerOutputToken, num_later_tokens > 0 ? decode / num_later_tokens : 0);
  out.observe(Histogram::kPromptTokens, timing.num_prompt_tokens);
  out.observe(Histogram::kGenerationTokens, timing.num_output_tokens);
  out.observe(Histogram::kMaxTokens, sequence.max_total_tokens - sequence.num_prompt_tokens);
  out.observe(Histogram::kPrefillComputedTokens,
              sequence.num_prompt_tokens - sequence.cold.num_cached_prompt_tokens);
  out.observe(Histogram::kRequestPreemptions, timing.num_preemptions);
  if (siblings.num_unfinished > 0) return;
  out.observe(Histogram::kLongestSequence, siblings.num_longest_output);
  out.observe(Histogram::kNumSequences, siblings.n);
}

}  // namespace quire
