#include "quire/live_sequence.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

namespace quire {
namespace {

void add_logprobs(const LiveSequence& sequence, Release& release) {
  RequestLogprobs& logprobs = *sequence.logprobs;
  ReleaseDetails& details = release.add_details();
  details.num_per_id = logprobs.num_per_id();
  logprobs.release(release.num_ids, details.logprobs);
  if (!sequence.needs_prompt_logprobs()) {  // all are known: not so where a sequence ends early
    details.num_per_prompt_place = logprobs.num_per_prompt_place();
    logprobs.release_prompt(details.prompt_logprobs);
  }
  details.cumulative_logprob = logprobs.cumulative_logprob();
}

// Whether nothing in the prompt takes part in the text.
bool is_first(const NewRequest& request, const TokenTable& table) {
  return std::none_of(request.prompt_ids.begin(), request.prompt_ids.end(), [&](int32_t id) {
    return table.contributes(id, request.params.skip_special_tokens) && table.ends_start(id);
  });
}

}  // namespace

std::unique_ptr<LiveSequence> make_sequence(const NewRequest& request, const EngineConfig& config,
                                            const TokenTable& table, int32_t max_total_tokens, uint64_t seed,
                                            uint32_t index, std::shared_ptr<const StopMatcher> stops,
                                            std::shared_ptr<const LogitAdjustments> adjustments) {
  const SamplingParams& params = request.params;
  auto live = std::make_unique<LiveSequence>(
      OutputGate(table, params, is_first(request, table),
                 table.open_text(request.prompt_ids, params.skip_special_tokens), std::move(stops)));
  live->request_id = request.request_id;
  live->index = index;
  live->num_prompt_tokens = static_cast<int32_t>(request.prompt_ids.size());
  live->max_total_tokens = max_total_tokens;
  live->token_ids.reserve(static_cast<size_t>(max_total_tokens));
  live->token_ids = request.prompt_ids;
  live->temperature = is_greedy(params) ? 0.0f : params.temperature;
  live->top_p = params.top_p;
  live->top_k = std::max(params.top_k, 0);
  live->min_tokens = params.min_tokens;
  live->seed = sequence_seed(seed, index);
  live->adjustments = std::move(adjustments);
  live->waits_for_ids = live->adjustments && live->adjustments->mask.needs_output();
  live->include_stop = params.include_stop_str_in_output;
  live->priority = request.priority;
  live->cold.arrival_ns = request.arrival_ns;
  live->cold.tokenize_ns = request.tokenize_ns;
  live->cold.deadline_ns = request.deadline_ns;
  live->return_receipt = request.return_receipt;
  live->cache_salt = params.cache_salt;

  const auto sort_unique = [](std::vector<int32_t>& ids) {
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  };
  const std::vector<int32_t>& eos = config.eos_token_ids;
  live->end_ids = params.stop_token_ids;
  if (!params.ignore_eos) live->end_ids.insert(live->end_ids.end(), eos.begin(), eos.end());
  const auto is_eos = [&](int32_t id) {
    return !params.ignore_eos && std::find(eos.begin(), eos.end(), id) != eos.end();
  };
  for (int32_t id : params.stop_token_ids) {
    if (!is_eos(id)) live->stop_token_ids.push_back(id);
  }
  for (const std::string& stop : params.stop) {
    const int32_t id = params.skip_special_tokens ? table.special_id(stop) : -1;
    if (id < 0 || is_eos(id)) continue;
    live->end_ids.push_back(id);
    live->cold.stop_specials.emplace_back(id, stop);
  }
  sort_unique(live->end_ids);
  sort_unique(live->stop_token_ids);
  // Sequence 0 is the one that computes the prompt.
  const auto prompt_logprobs = index == 0 ? params.prompt_logprobs : std::nullopt;
  // The kernels know no "0 likeliest ones".
  if (params.logprobs) live->num_logprobs = std::max(*params.logprobs, 1);
  if (prompt_logprobs) live->num_prompt_logprobs = std::max(*prompt_logprobs, 1);
  if (params.logprobs || prompt_logprobs) {
    live->logprobs =
        std::make_unique<RequestLogprobs>(params.logprobs, prompt_logprobs, live->num_prompt_tokens);
  }
  return live;
}

Release& append_run(LiveSequence& sequence, const OutputGate::Run& run, StepOutputs& out) {
  Release& release = out.releases.emplace_back();
  release.request_id = sequence.request_id;
  release.index = sequence.index;
  release.ids_begin = static_cast<uint32_t>(out.token_ids.size());
  release.num_ids = run.num_ids;
  release.num_text_ids = run.num_text_ids;
  release.trim = run.trim;
  release.is_first = run.is_first;
  release.open_text = run.open_text;
  release.usage.num_prompt_tokens = static_cast<uint32_t>(sequence.num_prompt_tokens);
  release.usage.num_cached_tokens = static_cast<uint32_t>(std::max(sequence.num_cached_tokens, 0));
  // The gate's held ids are the last ones; the run is the first of them.
  const auto begin = sequence.token_ids.end() - sequence.gate.num_held() - run.num_ids;
  out.token_ids.insert(out.token_ids.end(), begin, begin + run.num_ids);
  if (sequence.logprobs) add_logprobs(sequence, release);
  return release;
}

void append_end(LiveSequence& sequence, FinishReason reason, StepOutputs& out) {
  const std::span<const int32_t> ids(sequence.token_ids);
  const auto held_ids = ids.last(sequence.gate.num_held());
  std::string stop_string;
  if (reason == FinishReason::kStop) stop_string = sequence.gate.stop_string(held_ids);
  Release& release = append_run(sequence, sequence.gate.finish(held_ids), out);
  release.finish_reason = reason;
  if (reason != FinishReason::kStop) return;
  const std::vector<int32_t>& stops = sequence.stop_token_ids;
  if (!stop_string.empty()) {
    release.add_details().stop_string = std::move(stop_string);
  } else if (std::binary_search(stops.begin(), stops.end(), ids.back())) {
    release.add_details().stop_token_id = ids.back();
  } else {
    for (const auto& [id, stop] : sequence.cold.stop_specials) {
      if (id == ids.back()) release.add_details().stop_string = stop;
    }
  }
}

RequestTiming make_timing(const LiveSequence& sequence, const std::array<uint64_t, kNumWaitReasons>& waits,
                          int64_t end_ns) {
  RequestHistory history = sequence.cold.history;
  history.leave_at(sequence.num_computed_tokens);
  RequestTiming timing;
  timing.arrival_ns = sequence.cold.arrival_ns;
  timing.tokenize_ns = sequence.cold.tokenize_ns;
  timing.end_ns = end_ns;
  timing.admitted_ns = history.admitted_ns != 0 ? history.admitted_ns : end_ns;
  timing.first_token_ns = history.first_token_ns != 0 ? history.first_token_ns : end_ns;
  timing.num_prompt_tokens = static_cast<uint32_t>(sequence.num_prompt_tokens);
  timing.num_output_tokens = static_cast<uint32_t>(sequence.num_output_tokens());
  timing.num_cached_tokens = static_cast<uint32_t>(history.num_found_tokens);
  timing.num_computed_tokens = static_cast<uint32_t>(history.num_reached_tokens - history.num_found_tokens);
  timing.num_recomputed_tokens = static_cast<uint32_t>(history.num_recomputed_tokens);
  timing.num_preemptions = history.num_preemptions;
  for (size_t i = 0; i < waits.size(); ++i) timing.waits[i] = static_cast<uint32_t>(waits[i]);
  return timing;
}

}  // namespace quire
