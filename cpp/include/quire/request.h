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
template <>
inline constexpr std::tuple kMembers<NewRequest>{
    member("request_id", &NewRequest::request_id),   member("prompt_ids", &NewRequest::prompt_ids),
    member("params", &NewRequest::params),           member("priority", &NewRequest::priority),
    member("arrival_ns", &NewRequest::arrival_ns),   member("tokenize_ns", &NewRequest::tokenize_ns),
    member("deadline_ns", &NewRequest::deadline_ns), member("return_receipt", &NewRequest::return_receipt),
};

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
  uint32_t num_prompt_tokens = 0;
  uint32_t num_cached_tokens = 0;  // prompt tokens found in the prefix cache
  int32_t timing_idx = -1;         // of StepOutputs::receipts, with the end of who asked for it; -1: none
  // For the client, when finish_reason is kError, or kDeadline and nothing was generated: what went wrong.
  std::string error;
  // When finish_reason is kStop, what stopped it; neither of them at an end-of-sequence token.
  int32_t stop_token_id = -1;    // one of stop_token_ids
  int32_t stop_string_idx = -1;  // in StepOutputs::stop_strings: one of stop
  int32_t logprobs_idx = -1;     // in StepOutputs::logprobs; -1: none asked for
};
template <>
inline constexpr std::tuple kMembers<Release>{
    member("request_id", &Release::request_id),
    member("index", &Release::index),
    member<Binding::kNone>("ids_begin", &Release::ids_begin),
    member<Binding::kNone>("num_ids", &Release::num_ids),
    member("num_text_ids", &Release::num_text_ids),
    member("trim", &Release::trim),
    member("is_first", &Release::is_first),
    member("open_text", &Release::open_text),
    member("finish_reason", &Release::finish_reason),
    member("num_prompt_tokens", &Release::num_prompt_tokens),
    member("num_cached_tokens", &Release::num_cached_tokens),
    member<Binding::kNone>("timing_idx", &Release::timing_idx),
    member("error", &Release::error),
    member<Binding::kNone>("stop_token_id", &Release::stop_token_id),
    member<Binding::kNone>("stop_string_idx", &Release::stop_string_idx),
    member<Binding::kNone>("logprobs_idx", &Release::logprobs_idx),
};

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
template <>
inline constexpr std::tuple kMembers<ReleaseLogprobs>{
    member("release_idx", &ReleaseLogprobs::release_idx),
    member("begin", &ReleaseLogprobs::begin),
    member("num_per_id", &ReleaseLogprobs::num_per_id),
    member("num_prompt_places", &ReleaseLogprobs::num_prompt_places),
    member("num_per_prompt_place", &ReleaseLogprobs::num_per_prompt_place),
    member("cumulative_logprob", &ReleaseLogprobs::cumulative_logprob),
};

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
template <>
inline constexpr std::tuple kMembers<StepOutputs>{
    member("stats", &StepOutputs::stats),
    member("releases", &StepOutputs::releases),
    member("token_ids", &StepOutputs::token_ids),
    member("stop_strings", &StepOutputs::stop_strings),
    member("receipts", &StepOutputs::receipts),
    member("logprobs", &StepOutputs::logprobs),
    member("logprob_entries", &StepOutputs::logprob_entries),
};

}  // namespace quire
