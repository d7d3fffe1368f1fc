// A request as clients state it, and what a step returns for it.
#pragma once

#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <string>
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

// What few releases have.
struct ReleaseDetails {
  // For the client, when finish_reason is kError, or kDeadline and nothing was generated: what went wrong.
  std::string error;
  // When finish_reason is kStop, what stopped it; neither of them at an end-of-sequence token.
  int32_t stop_token_id = -1;           // one of stop_token_ids
  std::string stop_string;              // one of stop
  std::optional<RequestTiming> timing;  // with the end of who asked for it
  uint32_t num_per_id = 0;              // logprobs; 0: not asked for
  uint32_t num_per_prompt_place = 0;    // 0: not asked for, or not here
  double cumulative_logprob = 0;        // of the request's ids up to here
  std::vector<Logprob> logprobs;        // [num_ids, num_per_id]
  // [num_prompt_tokens - 1, num_per_prompt_place], in the first release of a request.
  std::vector<Logprob> prompt_logprobs;
};
QUIRE_MEMBERS(ReleaseDetails,
              QUIRE_OPTIONAL(error, stop_token_id, stop_string, timing, num_per_id, num_per_prompt_place,
                             cumulative_logprob, logprobs, prompt_logprobs));

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
  std::optional<ReleaseDetails> details;

  ReleaseDetails& add_details() { return details ? *details : details.emplace(); }
};
QUIRE_MEMBERS(Release, QUIRE_OPTIONAL(request_id, index), QUIRE_UNBOUND(ids_begin, num_ids),
              QUIRE_OPTIONAL(num_text_ids, trim, is_first, open_text, finish_reason, usage),
              QUIRE_UNBOUND(details));

struct EngineStats {
#define QUIRE_STAT(type, name, kind, series, label, meaning) type name = 0;
#include "quire/engine_metrics.def"

  bool operator==(const EngineStats&) const = default;
};
template <>
inline constexpr std::tuple kMembers<EngineStats>{
#define QUIRE_STAT(type, name, kind, series, label, meaning) member(#name, &EngineStats::name),
#include "quire/engine_metrics.def"
};

// What the core observes: how long something took, or how large it was.
enum class Histogram : uint32_t {
#define QUIRE_HISTOGRAM(name, series, buckets, meaning) name,
#include "quire/engine_metrics.def"
};
constexpr const char* kHistogramNames[] = {
#define QUIRE_HISTOGRAM(name, series, buckets, meaning) series,
#include "quire/engine_metrics.def"
};
constexpr size_t kNumHistograms = std::size(kHistogramNames);

// Copied as bytes: a number from elsewhere may be no enumerator.
struct Observation {
  double value = 0;
  uint32_t histogram = 0;
  uint32_t count = 0;  // of equal values
};
static_assert(sizeof(Observation) == 16, "no padding: copied as bytes");

struct StepOutputs {
  EngineStats stats;
  std::vector<Release> releases;
  std::vector<int32_t> token_ids;
  std::vector<Observation> observations;

  void clear() {  // all but the stats
    releases.clear();
    token_ids.clear();
    observations.clear();
  }
  // Values that come in a row, as the time since the step before does for most sequences, are one
  // observation.
  void observe(Histogram histogram, double value) {
    const auto number = static_cast<uint32_t>(histogram);
    if (!observations.empty() && observations.back().histogram == number &&
        observations.back().value == value) {
      ++observations.back().count;
    } else {
      observations.push_back({value, number, 1});
    }
  }
  std::span<const int32_t> ids(const Release& release) const {
    return std::span(token_ids).subspan(release.ids_begin, release.num_ids);
  }
};
QUIRE_MEMBERS(StepOutputs, QUIRE_OPTIONAL(stats, releases, token_ids, observations));

}  // namespace quire
