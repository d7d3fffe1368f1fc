// A sequence as the scheduler sees it: its tokens, how far their KV is computed, and what its next token
// needs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "quire/block_hash.h"
#include "quire/config.h"
#include "quire/logit_adjustments.h"
#include "quire/request_timing.h"

namespace quire {

struct alignas(64) Sequence {
  enum class Status : uint8_t { kNew, kWaiting, kRunning, kFinished };

  // What a decode step touches comes first, in two cache lines.
  std::vector<int32_t> token_ids;    // prompt, then output; capacity for max_total_tokens from the start
  int32_t num_computed_tokens = 0;   // tokens with KV in the cache: the one progress counter
  int32_t num_scheduled_tokens = 0;  // after those, in batches in flight: their KV is on its way
  int32_t num_pending_ids = 0;       // after token_ids: sampled by batches in flight, not known here yet
  int32_t num_entries = 0;           // batches in flight that it is in
  int32_t num_prompt_tokens = 0;
  int32_t num_published_blocks = 0;  // leading blocks that are findable, or whose hash another block has
  int32_t row = -1;                  // of the block tables, while running
  Status status = Status::kNew;
  bool is_forked = false;           // since its admission: it shares a sibling's prompt, see Scheduler
  uint32_t index = 0;               // among the sequences of its request
  bool waits_for_ids = false;       // scheduled only when no id is pending: bad words of several ids
  bool has_written_tables = false;  // since it got its row: a batch has written its rows of the tables
  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;
  uint64_t seed = 0;
  uint64_t request_id = 0;
  int32_t min_tokens = 0;
  int32_t max_total_tokens = 0;     // prompt + output; the sequence ends there
  int32_t num_cached_tokens = -1;   // prompt tokens found in the cache at the first admission; -1 before
  int32_t num_logprobs = 0;         // as Batch has it
  int32_t num_prompt_logprobs = 0;  // the same of the prompt's tokens
  int32_t num_known_prompt_logprobs = 0;  // of the num_prompt_tokens - 1 places that predict one
  std::shared_ptr<const LogitAdjustments> adjustments;  // null: none

  std::string cache_salt;               // of the first block's hash
  std::vector<BlockHash> block_hashes;  // of the first full blocks; extended when a block is full
  Sequence* next_sibling = nullptr;     // a ring: the unfinished sequences of a request; null: the only one
  int32_t priority = 0;                 // lower first
  uint64_t arrival = 0;                 // its number among all sequences
  RequestHistory* history = nullptr;    // elsewhere, since steps do not touch it; never null in the scheduler
  Sequence* previous = nullptr;         // in the waiting queue
  Sequence* next = nullptr;

  int32_t num_tokens() const { return static_cast<int32_t>(token_ids.size()); }
  int32_t num_output_tokens() const { return num_tokens() - num_prompt_tokens; }
  // The order in which sequences are served, waiting or running.
  bool goes_before(const Sequence& other) const {
    return priority != other.priority ? priority < other.priority : arrival < other.arrival;
  }
  bool needs_prompt_logprobs() const {
    return num_prompt_logprobs > 0 && num_known_prompt_logprobs < num_prompt_tokens - 1;
  }
  // Counting batches in flight: where scheduling goes on.
  int32_t num_tokens_ahead() const { return num_tokens() + num_pending_ids; }
  int32_t num_computed_ahead() const { return num_computed_tokens + num_scheduled_tokens; }
};

// A thousand sequences are more than the second-level cache holds: a loop over them prefetches the one
// that it reaches this many turns later. `sequence` may be null.
constexpr int32_t kPrefetchDistance = 4;
constexpr size_t kNumHotBytes = 128;  // what a decode step touches of Sequence
inline void prefetch(const Sequence* sequence, size_t num_bytes) {
  const auto* bytes = reinterpret_cast<const char*>(sequence);
  for (size_t i = 0; sequence && i < num_bytes; i += 64) __builtin_prefetch(bytes + i, 1);
}

}  // namespace quire
