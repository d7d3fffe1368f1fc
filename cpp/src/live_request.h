// A request while EngineCore has it, and what leaves of it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "quire/logprobs.h"
#include "quire/output_gate.h"
#include "quire/request.h"
#include "quire/request_state.h"
#include "quire/stop_matcher.h"

namespace quire {

struct LiveRequest : RequestState {
  explicit LiveRequest(OutputGate output_gate) : gate(std::move(output_gate)) { history = &cold.history; }
  LiveRequest(const LiveRequest&) = delete;
  LiveRequest& operator=(const LiveRequest&) = delete;

  OutputGate gate;
  std::vector<int32_t> end_ids;               // sorted: the request ends at any of them
  std::vector<int32_t> stop_token_ids;        // of them, sorted: those that are a stop_reason
  std::unique_ptr<RequestLogprobs> logprobs;  // null: none asked for
  bool include_stop = false;
  int32_t num_counted_prompt_tokens = 0;  // in the statistics; recomputed ones count once
  bool return_receipt = false;

  struct Cold {
    RequestHistory history;
    // Of NewRequest:
    int64_t arrival_ns = 0;
    int64_t tokenize_ns = 0;
    int64_t deadline_ns = 0;
  } cold;  // last: steps do not touch it
};
constexpr size_t kNumUpdateBytes = sizeof(LiveRequest) - sizeof(LiveRequest::Cold);  // what update() touches

// Sequence `index` of the request's n, which draws from `seed` as sequence_seed() says. The request is valid.
// stops, edits: make_stop_matcher() and make_logit_edits() of its params, which all its sequences share: what
// is prepared once must not cost n times as much.
std::unique_ptr<LiveRequest> make_sequence(const NewRequest& request, const EngineConfig& config,
                                           const TokenTable& table, int32_t max_total_tokens, uint64_t seed,
                                           uint32_t index, std::shared_ptr<const StopMatcher> stops,
                                           std::shared_ptr<const LogitEdits> edits);

// Appends a run of the gate's ids to `out`. The release is valid until the next one is appended.
Release& append_run(LiveRequest& request, const OutputGate::Run& run, StepOutputs& out);
// Appends everything held, as the request's last release.
void append_end(LiveRequest& request, FinishReason reason, StepOutputs& out);

// waits: Scheduler::waits().
Receipt make_receipt(const LiveRequest& request, const std::array<uint64_t, kNumWaitReasons>& waits,
                     int64_t end_ns);

}  // namespace quire
