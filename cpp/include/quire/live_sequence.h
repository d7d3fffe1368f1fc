// A sequence while EngineCore has it, and what leaves of it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "quire/logprobs.h"
#include "quire/output_gate.h"
#include "quire/request.h"
#include "quire/sequence.h"
#include "quire/stop_matcher.h"

namespace quire {

// What the sequences of a request with several have in common.
struct Siblings {
  uint32_t n = 0;
  uint32_t num_unfinished = 0;
  int32_t num_longest_output = 0;  // tokens, of those that have ended
};

struct LiveSequence : Sequence {
  explicit LiveSequence(OutputGate output_gate) : gate(std::move(output_gate)) { history = &cold.history; }
  LiveSequence(const LiveSequence&) = delete;
  LiveSequence& operator=(const LiveSequence&) = delete;

  OutputGate gate;
  std::vector<int32_t> end_ids;               // sorted: the sequence ends at any of them
  std::vector<int32_t> stop_token_ids;        // of them, sorted: those that are a stop_reason
  std::unique_ptr<RequestLogprobs> logprobs;  // null: none asked for
  bool include_stop = false;
  bool return_receipt = false;
  int64_t last_token_ns = 0;  // when the core learned it; 0: none yet

  struct Cold {
    RequestHistory history;
    // From NewRequest:
    int64_t arrival_ns = 0;
    int64_t tokenize_ns = 0;
    int64_t deadline_ns = 0;
    int32_t num_cached_prompt_tokens = 0;  // once there is a token: found in the cache, or at a sibling
    std::shared_ptr<Siblings> siblings;    // null: it has none
    // Special tokens that a stop string spells: they end the sequence although they make no text.
    std::vector<std::pair<int32_t, std::string>> stop_specials;
  } cold;  // last: steps do not touch it
};
constexpr size_t kNumUpdateBytes =
    sizeof(LiveSequence) - sizeof(LiveSequence::Cold);  // what update() touches

// Sequence `index` of the sequence's n, which draws from `seed` as sequence_seed() says. The sequence is
// valid. stops, adjustments: make_stop_matcher() and make_logit_adjustments() of its params, which all its
// sequences share: what is prepared once must not cost n times as much.
std::unique_ptr<LiveSequence> make_sequence(const NewRequest& request, const EngineConfig& config,
                                            const TokenTable& table, int32_t max_total_tokens, uint64_t seed,
                                            uint32_t index, std::shared_ptr<const StopMatcher> stops,
                                            std::shared_ptr<const LogitAdjustments> adjustments);

// Appends a run of the gate's ids to `out`. The release is valid until the next one is appended.
Release& append_run(LiveSequence& sequence, const OutputGate::Run& run, StepOutputs& out);
// Appends everything held, as the sequence's last release.
void append_end(LiveSequence& sequence, FinishReason reason, StepOutputs& out);

// Whether the sequence came to an end of its own.
inline bool is_success(FinishReason reason) {
  return reason == FinishReason::kStop || reason == FinishReason::kLength;
}

// waits: Scheduler::waits().
RequestTiming make_timing(const LiveSequence& sequence, const std::array<uint64_t, kNumWaitReasons>& waits,
                          int64_t end_ns);

}  // namespace quire
