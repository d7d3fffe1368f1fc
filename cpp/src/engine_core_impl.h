// What EngineCore holds: engine_core.cc has the life of requests, engine_step.cc that of steps.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "deadlines.h"
#include "live_sequence.h"
#include "quire/engine_core.h"
#include "quire/scheduler.h"

namespace quire {

// The sequences of a request, by index; null: it has ended. Not all are null.
using Sequences = std::vector<std::unique_ptr<LiveSequence>>;

// SplitMix64: a full-period sequence, so requests without a seed get different ones.
class SeedSequence {
 public:
  explicit SeedSequence(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ULL;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

struct EngineCore::Impl {
  Impl(EngineConfig engine_config, TokenTable token_table, EngineClock engine_clock);

  EngineConfig config;
  TokenTable table;
  EngineClock clock;
  Scheduler scheduler;
  SeedSequence seeds;
  Deadlines deadlines;
  PrefillRate prefill_rate;
  int64_t updated_ns = 0;        // the last update()
  int32_t max_total_tokens = 0;  // of any request
  std::unordered_map<uint64_t, Sequences> requests;
  StepOutputs outputs;
  StepOutputs ends;  // of cancelled and failed requests, until the next outputs
  std::vector<LiveSequence*> finished;

  void begin_outputs();
  void end(LiveSequence& sequence, FinishReason reason, StepOutputs& out) const;
  void check(const Batch& batch, std::span<const int32_t> sampled, std::span<const int32_t> counts) const;
  void count_prompt_tokens(LiveSequence& sequence);
  FinishReason accept(LiveSequence& sequence, int32_t id);
  FinishReason accept_run(LiveSequence& sequence, std::span<const int32_t> run, const LogprobRows& rows,
                          int32_t first_row);
  void take_prompt_logprobs(const Batch& batch, const LogprobRows& rows);
  void erase(const LiveSequence& sequence);
  void drop(uint64_t request_id);
  void end_early(uint64_t request_id, FinishReason reason, const std::string& error);
  int32_t num_prompt_tokens_left(const Sequences& sequences) const;
  int64_t due_ns(const Sequences& sequences) const;
  void end_due(int64_t now_ns);
  EngineStats stats() const;
};

}  // namespace quire
