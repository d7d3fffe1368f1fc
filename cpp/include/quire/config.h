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
  float watermark = 0.01f;  // share of blocks kept free when a request is admitted
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;  // false: a prompt is scheduled whole or not at all
  int32_t vocab_size = 0;              // rows of the logits
  uint64_t seed = 0;                   // of the seeds drawn for requests that give none
  std::vector<int32_t> eos_token_ids;  // a request ends at any of these unless it says ignore_eos

  int32_t max_blocks_per_request() const { return (max_model_len + block_size - 1) / block_size; }
};
template <>
inline constexpr std::tuple kMembers<EngineConfig>{
    member("block_size", &EngineConfig::block_size),
    member<Binding::kRequired>("num_blocks", &EngineConfig::num_blocks),
    member("max_num_seqs", &EngineConfig::max_num_seqs),
    member("max_num_batched_tokens", &EngineConfig::max_num_batched_tokens),
    member<Binding::kRequired>("max_model_len", &EngineConfig::max_model_len),
    member("max_output_tokens", &EngineConfig::max_output_tokens),
    member("max_batches_in_flight", &EngineConfig::max_batches_in_flight),
    member("watermark", &EngineConfig::watermark),
    member("scheduling_policy", &EngineConfig::scheduling_policy),
    member("enable_prefix_caching", &EngineConfig::enable_prefix_caching),
    member("enable_chunked_prefill", &EngineConfig::enable_chunked_prefill),
    member<Binding::kRequired>("vocab_size", &EngineConfig::vocab_size),
    member("seed", &EngineConfig::seed),
    member("eos_token_ids", &EngineConfig::eos_token_ids),
};

// Throws InvalidArgument that names the setting.
void validate(const EngineConfig& config);

}  // namespace quire
