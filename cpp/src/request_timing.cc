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

std::string to_json(const RequestTiming& receipt, int64_t text_ns) {
  const std::array<std::pair<const char*, int64_t>, 5> ends = {{
      {"tokenize_ms", receipt.arrival_ns + receipt.tokenize_ns},
      {"queue_ms", receipt.admitted_ns},
      {"prefill_ms", receipt.first_token_ns},
      {"decode_ms", receipt.end_ns},
      {"detokenize_ms", text_ns},
  }};
  std::string json = "{";
  // Rounding the ends, and not the stages, keeps the sum exact.
  int64_t before = 0;
  for (const auto& [name, end_ns] : ends) {
    const int64_t now = std::max(before, (end_ns - receipt.arrival_ns) / 1000);
    append_ms(json, name, now - before);
    before = now;
  }
  append_ms(json, "total_ms", before);
  append_count(json, "prompt_tokens", receipt.num_prompt_tokens);
  append_count(json, "output_tokens", receipt.num_output_tokens);
  append_count(json, "cached_tokens", receipt.num_cached_tokens);
  append_count(json, "computed_tokens", receipt.num_computed_tokens);
  append_count(json, "recomputed_tokens", receipt.num_recomputed_tokens);
  append_count(json, "preemptions", receipt.num_preemptions);
  json += "\"waited_steps\": {";
  append_count(json, "rows", receipt.waits[static_cast<size_t>(WaitReason::kRows)]);
  append_count(json, "blocks", receipt.waits[static_cast<size_t>(WaitReason::kBlocks)]);
  append_count(json, "token_budget", receipt.waits[static_cast<size_t>(WaitReason::kTokenBudget)], "}}");
  return json;
}

}  // namespace quire
