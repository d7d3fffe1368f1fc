#include "live_request.h"

#include <algorithm>
#include <span>

namespace quire {

Release& append_run(LiveRequest& request, const OutputGate::Run& run, StepOutputs& out) {
  Release& release = out.releases.emplace_back();
  release.request_id = request.request_id;
  release.ids_begin = static_cast<uint32_t>(out.token_ids.size());
  release.num_ids = run.num_ids;
  release.num_text_ids = run.num_text_ids;
  release.trim = run.trim;
  release.is_first = run.is_first;
  release.open_text = run.open_text;
  release.num_prompt_tokens = static_cast<uint32_t>(request.num_prompt_tokens);
  release.num_cached_tokens = static_cast<uint32_t>(std::max(request.num_cached_tokens, 0));
  // The gate's held ids are the last ones; the run is the first of them.
  const auto begin = request.token_ids.end() - request.gate.num_held() - run.num_ids;
  out.token_ids.insert(out.token_ids.end(), begin, begin + run.num_ids);
  return release;
}

void append_end(LiveRequest& request, FinishReason reason, StepOutputs& out) {
  const std::span<const int32_t> ids(request.token_ids);
  append_run(request, request.gate.finish(ids.last(request.gate.num_held())), out).finish_reason = reason;
}

Receipt make_receipt(const LiveRequest& request, const std::array<uint64_t, kNumWaitReasons>& waits,
                     int64_t end_ns) {
  RequestHistory history = request.cold.history;
  history.leave_at(request.num_computed_tokens);
  Receipt receipt;
  receipt.arrival_ns = request.cold.arrival_ns;
  receipt.tokenize_ns = request.cold.tokenize_ns;
  receipt.end_ns = end_ns;
  receipt.admitted_ns = history.admitted_ns != 0 ? history.admitted_ns : end_ns;
  receipt.first_token_ns = history.first_token_ns != 0 ? history.first_token_ns : end_ns;
  receipt.num_prompt_tokens = static_cast<uint32_t>(request.num_prompt_tokens);
  receipt.num_output_tokens = static_cast<uint32_t>(request.num_output_tokens());
  receipt.num_cached_tokens = static_cast<uint32_t>(std::max(request.num_cached_tokens, 0));
  receipt.num_computed_tokens =
      static_cast<uint32_t>(std::max(history.num_reached_tokens - std::max(request.num_cached_tokens, 0), 0));
  receipt.num_recomputed_tokens = static_cast<uint32_t>(history.num_recomputed_tokens);
  receipt.num_preemptions = history.num_preemptions;
  for (size_t i = 0; i < waits.size(); ++i) receipt.waits[i] = static_cast<uint32_t>(waits[i]);
  return receipt;
}

}  // namespace quire
