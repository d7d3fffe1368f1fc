// The engine without a model: requests in, batches to a runner, sampled ids back, releasable runs of ids out.
// One owner thread. Composes Scheduler (what runs), TokenTable + TextBoundary + StopMatcher (what may leave).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "quire/batch.h"
#include "quire/config.h"
#include "quire/deadlines.h"
#include "quire/live_sequence.h"
#include "quire/request.h"
#include "quire/scheduler.h"
#include "quire/token_table.h"

namespace quire {

// What a sampler gives for a row whose logits are not finite.
constexpr int32_t kNoToken = -1;

// Nanoseconds of CLOCK_MONOTONIC, as in NewRequest.
using EngineClock = std::function<int64_t()>;
int64_t monotonic_ns();

class EngineCore {
 public:
  // clock: asked in add_request(), schedule() and update(); tests have their own.
  EngineCore(EngineConfig config, TokenTable token_table, EngineClock clock = monotonic_ns);
  EngineCore(const EngineCore&) = delete;
  EngineCore& operator=(const EngineCore&) = delete;

  const EngineConfig& config() const { return config_; }
  const TokenTable& token_table() const { return table_; }

  // params.n sequences of one prompt, which share its blocks; each releases its ids and its end under its
  // index. Sequence i draws from sequence_seed(seed, i).
  // Throws InvalidArgument (prompt empty, too long, id outside the vocabulary, params out of range, a
  // priority that the policy does not know, id in use); the engine is unchanged then. A deadline ends the
  // request (kDeadline, with what it has so far) in the first schedule() or update() after it, and frees its
  // blocks then. So it does, with nothing, as soon as the rest of the prompt surely takes longer than the
  // time that is left, perhaps at once: see PrefillRate.
  void add_request(NewRequest request);
  // Frees the request's blocks at once; the end of each unfinished sequence (kCancelled) is in the next
  // update() or take_outputs(). An unknown id is no error: the request may have finished meanwhile. Legal
  // while batches are in flight.
  void cancel(uint64_t request_id) { end_early(request_id, FinishReason::kCancelled, ""); }
  // Ends a request that never got in (add_request threw) or must be ended: kError with the message.
  void fail(uint64_t request_id, const std::string& message) {
    end_early(request_id, FinishReason::kError, message);
  }

  // Requests live, ends not returned yet, or batches in flight (whose requests may all be gone).
  bool has_unfinished_requests() const;

  // The next step's work. It is in flight until its update(), and valid so long. num_tokens is 0 when nothing
  // can run (or only after an update()); such a batch is not in flight, and valid until the next schedule().
  // Throws InvalidArgument when max_batches_in_flight are in flight already.
  const Batch& schedule();
  int32_t num_batches_in_flight() const { return scheduler_.num_batches_in_flight(); }
  // sampled: [batch.num_sampled] ids of the oldest batch in flight, in its order; kNoToken ends that request
  // with an error. An id for a request that has ended meanwhile is ignored. Returns what may leave now. Valid
  // until the next update() or take_outputs(). Throws InvalidArgument, and changes nothing, when no batch is
  // in flight or the ids do not fit it.
  // logprobs: what the batch asks for (Batch::has_logprobs, num_prompt_rows); may be empty where it asks for
  // none.
  // counts: how many ids in a row each sample gives, at least one; `sampled` and logprobs.sampled then have
  // their sum. Empty: one each. Only while no other batch is in flight may one be more than 1, since the next
  // batch goes on after the first id. Each id is drawn as if it had come alone, but under the mask of the
  // first: the core drops what follows where the request's mask changes, a kNoToken, or its end. The next
  // batch computes the KV of all these ids, and writes the request's counts for penalties again.
  const StepOutputs& update(std::span<const int32_t> sampled, const StepLogprobs& logprobs = {},
                            std::span<const int32_t> counts = {});
  // The model run failed: no batch is in flight any more, and what they held is scheduled again.
  void forget_batches() { scheduler_.forget_batches(); }
  // Every request is gone without an end, no batch is in flight and no output waits: the core is as after its
  // start, but for what the prefix cache holds. Right after an exception of any other call, too.
  void clear();
  // Ends of cancelled and failed requests when no step runs. Same storage as update().
  const StepOutputs& take_outputs();
  // What the last update() or take_outputs() returned.
  const StepOutputs& outputs() const { return outputs_; }

  EngineStats stats() const;
  // For what others know: the runner's part of the stats, in the last outputs, too, and what a step took the
  // host. Before the outputs are published.
  void report(const std::function<void(EngineStats&)>& set);
  void observe_step_host(int64_t nanoseconds);
  // Free + used == total, reference counts match tables, rows match requests. Throws InternalError.
  void check_integrity() const;

 private:
  // The sequences of a request, by index; null: it has ended. Not all are null.
  using Sequences = std::vector<std::unique_ptr<LiveSequence>>;

  // Life of requests (engine_core.cc)
  void end(LiveSequence& sequence, FinishReason reason, StepOutputs& out);
  void end_early(uint64_t request_id, FinishReason reason, const std::string& error);
  void drop(uint64_t request_id);
  int32_t num_prompt_tokens_left(const Sequences& sequences) const;
  int64_t due_ns(const Sequences& sequences) const;
  void end_due(int64_t now_ns);
  // Steps (engine_step.cc)
  void begin_outputs();
  void check(const Batch& batch, std::span<const int32_t> sampled, std::span<const int32_t> counts) const;
  FinishReason accept(LiveSequence& sequence, int32_t id);
  FinishReason accept_run(LiveSequence& sequence, std::span<const int32_t> run, const LogprobRows& rows,
                          int32_t first_row);
  void take_prompt_logprobs(const Batch& batch, const LogprobRows& rows);
  void erase(const LiveSequence& sequence);
  // What it tells of itself (engine_metrics.cc)
  void observe(StepOutputs& out, Histogram histogram, double value) const;
  void count_first_token(LiveSequence& sequence);
  void count_tokens(LiveSequence& sequence, int64_t now_ns);
  void count_end(const LiveSequence& sequence, FinishReason reason, StepOutputs& out);

  const EngineConfig config_;
  const TokenTable table_;
  const EngineClock clock_;
  Scheduler scheduler_;
  uint64_t seed_state_;
  Deadlines deadlines_;
  PrefillRate prefill_rate_;
  int64_t updated_ns_ = 0;        // the last update()
  int32_t max_total_tokens_ = 0;  // of any request
  std::unordered_map<uint64_t, Sequences> requests_;
  StepOutputs outputs_;
  StepOutputs ends_;  // of cancelled and failed requests, until the next outputs
  std::vector<LiveSequence*> finished_;
};

}  // namespace quire
