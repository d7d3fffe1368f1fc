#include "quire/request_timing.h"

#include <cstdio>

namespace quire {
namespace {

void append_ms(std::string& out, const char* name, int64_t microseconds) {
  char text[64];
  std::snprintf(text, sizeof(text), "\"%s\": %lld.%03lld, ", name,
                static_cast<long long>(microseconds / 1000), static_cast<long long>(microseconds % 1000));
  out += text;
}

void append_count(std::string& out, const char* name, uint32_t count, const char* separator = ", ") {
  out += '"';
  out += name;
  out += "\": " + std::to_string(count) + separator;
}

}  // namespace

std::string to_json(const RequestTiming& timing, int64_t text_ns) {
  const std::array<std::pair<const char*, int64_t>, 5> ends = {{
      {"tokenize_ms", timing.arrival_ns + timing.tokenize_ns},
      {"queue_ms", timing.admitted_ns},
      {"prefill_ms", timing.first_token_ns},
      {"decode_ms", timing.end_ns},
      {"detokenize_ms", text_ns},
  }};
  std::string json = "{";
  // Rounding the ends, and not the stages, keeps the sum exact.
  int64_t before = 0;
  for (const auto& [name, end_ns] : ends) {
    const int64_t now = std::max(before, (end_ns - timing.arrival_ns) / 1000);
    append_ms(json, name, now - before);
    before = now;
  }
  append_ms(json, "total_ms", before);
  append_count(json, "prompt_tokens", timing.num_prompt_tokens);
  append_count(json, "output_tokens", timing.num_output_tokens);
  append_count(json, "cached_tokens", timing.num_cached_tokens);
  append_count(json, "computed_tokens", timing.num_computed_tokens);
  append_count(json, "recomputed_tokens", timing.num_recomputed_tokens);
  append_count(json, "preemptions", timing.num_preemptions);
  json += "\"waited_steps\": {";
  append_count(json, "rows", timing.waits[static_cast<size_t>(WaitReason::kRows)]);
  append_count(json, "blocks", timing.waits[static_cast<size_t>(WaitReason::kBlocks)]);
  append_count(json, "token_budget", timing.waits[static_cast<size_t>(WaitReason::kTokenBudget)], "}}");
  return json;
}

}  // namespace quire
