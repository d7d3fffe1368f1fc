// Limits and sizes of one engine. Plain values, checked once by validate().
#pragma once

#include <cstdint>
#include <vector>

namespace quire {

// The largest max_batches_out.
constexpr int32_t kMaxBatchesOut = 2;
// Together with a request's stop_token_ids at most kMaxMaskIds (batch.h).
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
  int32_t max_batches_out = 1;            // 2: a step may be scheduled before the ids of the last are known
  float watermark = 0.01f;                // share of blocks kept free when a request is admitted
  SchedulingPolicy scheduling_policy = SchedulingPolicy::kFcfs;
  bool enable_prefix_caching = true;
  bool enable_chunked_prefill = true;  // false: a prompt is scheduled whole or not at all
  int32_t vocab_size = 0;              // rows of the logits
  uint64_t seed = 0;                   // of the seeds drawn for requests that give none
  std::vector<int32_t> eos_token_ids;  // a request ends at any of these unless it says ignore_eos

  int32_t max_blocks_per_request() const { return (max_model_len + block_size - 1) / block_size; }
};

// Throws InvalidArgument that names the setting.
void validate(const EngineConfig& config);

}  // namespace quire
