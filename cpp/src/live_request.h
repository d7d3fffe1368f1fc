// A request while EngineCore has it, and what leaves of it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "quire/logprobs.h"
#include "quire/output_gate.h"
#include "quire/request.h"
#include "quire/request_state.h"

namespace quire {

struct LiveRequest : RequestState {
  explicit LiveRequest(OutputGate output_gate) : gate(std::move(output_gate)) {}

  OutputGate gate;
  std::vector<int32_t> end_ids;               // sorted: the request ends at any of them
  std::vector<int32_t> stop_token_ids;        // of them, sorted: those that are a stop_reason
  std::unique_ptr<RequestLogprobs> logprobs;  // null: none asked for
  bool include_stop = false;
  int32_t num_counted_prompt_tokens = 0;  // in the statistics; recomputed ones count once
};

// Sequence `index` of the request's n, which draws from `seed` as sequence_seed() says. The request is valid.
std::unique_ptr<LiveRequest> make_sequence(const NewRequest& request, const EngineConfig& config,
                                           const TokenTable& table, int32_t max_total_tokens, uint64_t seed,
                                           uint32_t index);

// Appends a run of the gate's ids to `out`. The release is valid until the next one is appended.
Release& append_run(LiveRequest& request, const OutputGate::Run& run, StepOutputs& out);
// Appends everything held, as the request's last release.
void append_end(LiveRequest& request, FinishReason reason, StepOutputs& out);

}  // namespace quire
