#include "live_request.h"

#include <algorithm>
#include <span>

namespace quire {
namespace {

// The release is the last one of `out`.
void append_logprobs(const LiveRequest& request, Release& release, StepOutputs& out) {
  RequestLogprobs& logprobs = *request.logprobs;
  release.logprobs_idx = static_cast<int32_t>(out.logprobs.size());
  ReleaseLogprobs& of_release = out.logprobs.emplace_back();
  of_release.release_idx = static_cast<uint32_t>(out.releases.size() - 1);
  of_release.begin = static_cast<uint32_t>(out.logprob_entries.size());
  of_release.num_per_id = logprobs.num_per_id();
  logprobs.release(release.num_ids, out.logprob_entries);
  if (!request.needs_prompt_logprobs()) {  // all are known: not so where a request ends early
    of_release.num_per_prompt_place = logprobs.num_per_prompt_place();
    of_release.num_prompt_places = logprobs.release_prompt(out.logprob_entries);
  }
  of_release.cumulative_logprob = logprobs.cumulative_logprob();
}

}  // namespace

Release& append_run(LiveRequest& request, const OutputGate::Run& run, StepOutputs& out) {
  Release& release = out.releases.emplace_back();
  release.request_id = request.request_id;
  release.index = request.index;
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
  if (request.logprobs) append_logprobs(request, release, out);
  return release;
}

void append_end(LiveRequest& request, FinishReason reason, StepOutputs& out) {
  const std::span<const int32_t> ids(request.token_ids);
  OutputGate::Run run = request.gate.finish(ids.last(request.gate.num_held()));
  Release& release = append_run(request, run, out);
  release.finish_reason = reason;
  if (reason != FinishReason::kStop) return;
  release.stop_string = std::move(run.stop_string);
  const std::vector<int32_t>& stops = request.stop_token_ids;
  if (release.stop_string.empty() && std::binary_search(stops.begin(), stops.end(), ids.back())) {
    release.stop_token_id = ids.back();
  }
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
  receipt.num_cached_tokens = static_cast<uint32_t>(history.num_found_tokens);
  receipt.num_computed_tokens = static_cast<uint32_t>(history.num_reached_tokens - history.num_found_tokens);
  receipt.num_recomputed_tokens = static_cast<uint32_t>(history.num_recomputed_tokens);
  receipt.num_preemptions = history.num_preemptions;
  for (size_t i = 0; i < waits.size(); ++i) receipt.waits[i] = static_cast<uint32_t>(waits[i]);
  return receipt;
}

}  // namespace quire
