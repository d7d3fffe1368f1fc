// A request as clients state it, and what a step returns for it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/logprobs.h"
#include "quire/request_timing.h"
#include "quire/sampling.h"
#include "quire/token_table.h"

namespace quire {

struct NewRequest {
  uint64_t request_id = 0;  // unique among live requests of one engine; chosen by the client
  std::vector<int32_t> prompt_ids;
  SamplingParams params;
  int32_t priority = 0;  // lower first
  // Times of CLOCK_MONOTONIC (std::chrono::steady_clock, Python's time.monotonic_ns) on this host.
  int64_t arrival_ns = 0;   // at the server; 0: not told
  int64_t tokenize_ns = 0;  // how long the tokenizer stage took
  int64_t deadline_ns = 0;  // 0: none
  bool return_receipt = false;
};
QUIRE_MEMBERS(NewRequest, QUIRE_OPTIONAL(request_id, prompt_ids, params, priority, arrival_ns, tokenize_ns,
                                         deadline_ns, return_receipt));

// What a sequence cost, up to a release: numbers for who asks for them.
struct Usage {
  uint32_t num_prompt_tokens = 0;
  uint32_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
};
QUIRE_MEMBERS(Usage, QUIRE_OPTIONAL(num_prompt_tokens, num_cached_tokens));

// A run of ids whose text can be decoded on its own: it ends at a complete character and outside a possible
// stop string.
struct Release {
  uint64_t request_id = 0;
  uint32_t index = 0;      // of the sequence, below the request's n; each of them has an end of its own
  uint32_t ids_begin = 0;  // [ids_begin, ids_begin + num_ids) of StepOutputs::token_ids
  uint32_t num_ids = 0;
  uint32_t num_text_ids = 0;  // the first so many ids carry text; a stop token after them does not
  int32_t trim = 0;           // bytes to drop from the end of the text: a stop string and what follows it
  bool is_first = false;      // nothing before took part in the text (TokenTable::decode)
  OpenText open_text;         // what the prompt left open, with the first ids of a request
  FinishReason finish_reason = FinishReason::kNone;
  Usage usage;
  int32_t timing_idx = -1;  // of StepOutputs::receipts, with the end of who asked for it; -1: none
  // For the client, when finish_reason is kError, or kDeadline and nothing was generated: what went wrong.
  std::string error;
  // When finish_reason is kStop, what stopped it; neither of them at an end-of-sequence token.
  int32_t stop_token_id = -1;    // one of stop_token_ids
  int32_t stop_string_idx = -1;  // in StepOutputs::stop_strings: one of stop
  int32_t logprobs_idx = -1;     // in StepOutputs::logprobs; -1: none asked for
};
QUIRE_MEMBERS(Release, QUIRE_OPTIONAL(request_id, index), QUIRE_UNBOUND(ids_begin, num_ids),
              QUIRE_OPTIONAL(num_text_ids, trim, is_first, open_text, finish_reason, usage),
              QUIRE_UNBOUND(timing_idx), QUIRE_OPTIONAL(error),
              QUIRE_UNBOUND(stop_token_id, stop_string_idx, logprobs_idx));

// Logprobs of one release: [begin, ...) of StepOutputs::logprob_entries. First num_per_id for each id of the
// release, then num_per_prompt_place for each token of the prompt but its first, in the first release of a
// request.
struct ReleaseLogprobs {
  uint32_t release_idx = 0;
  uint32_t begin = 0;
  uint32_t num_per_id = 0;  // 0: not asked for
  uint32_t num_prompt_places = 0;
  uint32_t num_per_prompt_place = 0;  // 0: not asked for, or not here
  double cumulative_logprob = 0;      // of the request's ids up to here
};
QUIRE_MEMBERS(ReleaseLogprobs, QUIRE_OPTIONAL(release_idx, begin, num_per_id, num_prompt_places,
                                              num_per_prompt_place, cumulative_logprob));

struct EngineStats {
  uint64_t step = 0;
#define QUIRE_STAT(type, name, kind, series, meaning) type name = 0;
#include "quire/engine_stats.def"

  bool operator==(const EngineStats&) const = default;
};
template <>
inline constexpr std::tuple kMembers<EngineStats>{
    member("step", &EngineStats::step),
#define QUIRE_STAT(type, name, kind, series, meaning) member(#name, &EngineStats::name),
#include "quire/engine_stats.def"
};

struct StepOutputs {
  EngineStats stats;
  std::vector<Release> releases;
  std::vector<int32_t> token_ids;
  std::vector<std::string> stop_strings;  // those that ended a request
  std::vector<RequestTiming> receipts;
  std::vector<ReleaseLogprobs> logprobs;  // of the releases that have some, in their order
  std::vector<Logprob> logprob_entries;

  void clear() {  // all but the stats
    releases.clear();
    token_ids.clear();
    stop_strings.clear();
    logprobs.clear();
    logprob_entries.clear();
    receipts.clear();
  }
  std::string_view stop_string(const Release& release) const {  // "": none
    return release.stop_string_idx < 0 ? std::string_view()
                                       : stop_strings[static_cast<size_t>(release.stop_string_idx)];
  }
  // [num_ids, num_per_id] and [num_prompt_places, num_per_prompt_place]
  std::span<const Logprob> of_ids(const ReleaseLogprobs& run) const {
    const size_t num = size_t{releases[run.release_idx].num_ids} * run.num_per_id;
    return std::span(logprob_entries).subspan(run.begin, num);
  }
  std::span<const Logprob> of_prompt(const ReleaseLogprobs& run) const {
    const size_t begin = run.begin + of_ids(run).size();
    return std::span(logprob_entries)
        .subspan(begin, size_t{run.num_prompt_places} * run.num_per_prompt_place);
  }
};
QUIRE_MEMBERS(StepOutputs,
              QUIRE_OPTIONAL(stats, releases, token_ids, stop_strings, receipts, logprobs, logprob_entries));

}  // namespace quire
