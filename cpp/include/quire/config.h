// Limits and sizes of one engine. Plain values, checked once by validate().
#pragma once

#include <cstdint>
#include <vector>

#include "quire/members.h"

namespace quire {

constexpr int32_t kMaxEosTokenIds = 16;

enum class SchedulingPolicy : uint8_t {
  kFcfs,      // in the order of arrival; requests have no priority
  kPriority,  // by priority, then arrival; a request may push running ones of worse priority out
};

struct EngineConfig {
  int32_t block_size = 16;                // tokens per KV block
  int32_t num_blocks = 0;                 // KV blocks in the pool
  int32_t max_num_seqs = 256;             // running requests; also the rows of the block table
  int32_t max_num_batched_tokens = 2304;  // token budget of one step
  int32_t max_model_len = 0;              // prompt + output tokens of one request
  int32_t max_output_tokens = 0;          // largest max_tokens of a request; 0: what fits into the context
  int32_t max_batches_in_flight =
      1;                    // scheduled and not ended yet; 1: a step waits for the ids of the one before
  int32_t window = 0;       // tokens that every layer sees at most, itself included; 0: all
  float watermark = 0.01f;  // share of blocks kept free when a request is admitted
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;  // false: a prompt is scheduled whole or not at all
  bool disable_log_stats = false;      // nothing is observed for histograms
  int32_t vocab_size = 0;              // rows of the logits
  uint64_t seed = 0;                   // of the seeds drawn for requests that give none
  std::vector<int32_t> eos_token_ids;  // a request ends at any of these unless it says ignore_eos

  int32_t max_blocks_per_request() const { return (max_model_len + block_size - 1) / block_size; }
};
QUIRE_MEMBERS(EngineConfig, QUIRE_OPTIONAL(block_size), QUIRE_REQUIRED(num_blocks),
              QUIRE_OPTIONAL(max_num_seqs, max_num_batched_tokens), QUIRE_REQUIRED(max_model_len),
              QUIRE_OPTIONAL(max_output_tokens, max_batches_in_flight, window, watermark, scheduling_policy,
                             enable_prefix_caching, enable_chunked_prefill, disable_log_stats),
              QUIRE_REQUIRED(vocab_size), QUIRE_OPTIONAL(seed, eos_token_ids));

// Throws InvalidArgument that names the setting.
void validate(const EngineConfig& config);

}  // namespace quire
