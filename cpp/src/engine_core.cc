#include "quire/engine_core.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>

#include "deadlines.h"
#include "intake.h"
#include "live_request.h"
#include "quire/error.h"
#include "quire/scheduler.h"

namespace quire {
namespace {

// Of one request, by index; null: it has ended. Not all are null.
using Sequences = std::vector<std::unique_ptr<LiveRequest>>;

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

EngineConfig validated(EngineConfig config) {
  validate(config);
  return config;
}

uint64_t random_salt() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

}  // namespace

struct EngineCore::Impl {
  Impl(EngineConfig engine_config, TokenTable token_table, EngineClock engine_clock)
      : config(validated(std::move(engine_config))),
        table(std::move(token_table)),
        clock(std::move(engine_clock)),
        // A secret salt: block hashes of one engine cannot be prepared by its clients.
        scheduler(config, random_salt()),
        seeds(config.seed),
        prefill_rate(config.max_num_batched_tokens) {
    // A pool may be smaller than max_model_len. The last token of a request needs no KV.
    const int64_t num_slots = static_cast<int64_t>(config.num_blocks) * config.block_size;
    max_total_tokens = static_cast<int32_t>(std::min<int64_t>(config.max_model_len, num_slots + 1));
    outputs.releases.reserve(static_cast<size_t>(config.max_num_seqs));
    outputs.token_ids.reserve(4 * static_cast<size_t>(config.max_num_seqs));
    finished.reserve(static_cast<size_t>(config.max_num_seqs));
  }

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
  std::vector<LiveRequest*> finished;
  uint64_t step = 0;
  uint64_t num_prompt_tokens = 0;
  uint64_t num_generation_tokens = 0;

  void begin_outputs();
  void end(LiveRequest& request, FinishReason reason, StepOutputs& out) const;
  FinishReason accept(LiveRequest& request, int32_t id);
  void take_prompt_logprobs(const Batch& batch, const LogprobRows& rows);
  void erase(const LiveRequest& request);
  void drop(uint64_t request_id);
  void end_early(uint64_t request_id, FinishReason reason, const std::string& error);
  int32_t num_prompt_tokens_left(const Sequences& sequences) const;
  int64_t due_ns(const Sequences& sequences) const;
  void end_due(int64_t now_ns);
  EngineStats stats() const;
};

void EngineCore::Impl::begin_outputs() {
  outputs.clear();
  std::swap(outputs, ends);
}

// Its last release. The scheduler still has it.
void EngineCore::Impl::end(LiveRequest& request, FinishReason reason, StepOutputs& out) const {
  append_end(request, reason, out);
  if (!request.return_receipt) return;
  out.releases.back().receipt_idx = static_cast<int32_t>(out.receipts.size());
  out.receipts.push_back(make_receipt(request, scheduler.waits(request), clock()));
}

// The request's next id. Returns why the request ends with it, or kNone.
FinishReason EngineCore::Impl::accept(LiveRequest& request, int32_t id) {
  const int32_t output_idx = request.num_output_tokens();
  request.token_ids.push_back(id);
  ++num_generation_tokens;
  if (output_idx >= request.min_tokens &&
      std::binary_search(request.end_ids.begin(), request.end_ids.end(), id)) {
    if (request.include_stop) {
      request.gate.push(id, false);
    } else {
      request.gate.push_silent();
    }
    return FinishReason::kStop;
  }
  if (request.gate.push(id, output_idx >= request.min_tokens)) return FinishReason::kStop;
  return request.num_tokens() >= request.max_total_tokens ? FinishReason::kLength : FinishReason::kNone;
}

void EngineCore::Impl::take_prompt_logprobs(const Batch& batch, const LogprobRows& rows) {
  for (int32_t row = 0; row < batch.num_prompt_rows; ++row) {
    auto* request = static_cast<LiveRequest*>(scheduler.request(batch.prompt_req_idx[row]));
    if (!request) continue;  // ended meanwhile
    const int32_t place = batch.positions[batch.prompt_token_idx[row]];
    // A preempted request may have been scheduled again before this was known; then it comes twice.
    if (place < request->num_known_prompt_logprobs) continue;
    request->logprobs->set_prompt(place, batch.prompt_next_ids[row], rows, row);
    request->num_known_prompt_logprobs = place + 1;
  }
}

void EngineCore::Impl::end_early(uint64_t request_id, FinishReason reason, const std::string& error) {
  const auto found = requests.find(request_id);
  if (found != requests.end()) {
    for (const auto& sequence : found->second) {
      if (!sequence) continue;
      end(*sequence, reason, ends);
      ends.releases.back().error = error;
      scheduler.remove(*sequence);
    }
    deadlines.remove(request_id);
    requests.erase(found);
  } else if (reason == FinishReason::kError) {
    Release& release = ends.releases.emplace_back();
    release.request_id = request_id;
    release.finish_reason = reason;
    release.error = error;
  }
}

void EngineCore::Impl::erase(const LiveRequest& request) {
  const auto found = requests.find(request.request_id);
  Sequences& sequences = found->second;
  sequences[request.index].reset();
  if (std::none_of(sequences.begin(), sequences.end(), [](const auto& s) { return s != nullptr; })) {
    deadlines.remove(found->first);
    requests.erase(found);
  }
}

// Takes a request out without an end, whatever state an exception left it in. Allocates nothing.
void EngineCore::Impl::drop(uint64_t request_id) {
  const auto found = requests.find(request_id);
  if (found == requests.end()) return;
  for (const auto& sequence : found->second) {
    if (!sequence) continue;
    const bool is_scheduled = sequence->status == RequestState::Status::kWaiting ||
                              sequence->status == RequestState::Status::kRunning;
    if (is_scheduled) scheduler.finish(*sequence);
  }
  scheduler.drop_finished();
  deadlines.remove(request_id);
  requests.erase(found);
}

// To be computed before the first token of any of them; 0 once there is one.
int32_t EngineCore::Impl::num_prompt_tokens_left(const Sequences& sequences) const {
  int32_t num_left = INT32_MAX;
  for (const auto& sequence : sequences) {
    num_left = std::min(num_left, sequence ? scheduler.num_prompt_tokens_left(*sequence) : 0);
  }
  return num_left;
}

// When the request must be looked at: at its deadline, or when the rest of its prompt could at best be
// computed just in time.
int64_t EngineCore::Impl::due_ns(const Sequences& sequences) const {
  const auto live =
      std::find_if(sequences.begin(), sequences.end(), [](const auto& s) { return s != nullptr; });
  return (*live)->cold.deadline_ns - prefill_rate.least_ns(num_prompt_tokens_left(sequences));
}

void EngineCore::Impl::end_due(int64_t now_ns) {
  while (const auto request_id = deadlines.due(now_ns)) {
    const Sequences& sequences = requests.at(*request_id);
    const int64_t due = due_ns(sequences);
    if (due > now_ns) {
      deadlines.set(*request_id, due);
      continue;
    }
    const bool has_output = std::any_of(sequences.begin(), sequences.end(), [](const auto& sequence) {
      return !sequence || sequence->num_output_tokens() > 0;
    });
    end_early(*request_id, FinishReason::kDeadline,
              has_output ? ""
                         : explain_deadline(*sequences.front(), now_ns, num_prompt_tokens_left(sequences),
                                            prefill_rate));
  }
}

EngineStats EngineCore::Impl::stats() const {
  EngineStats stats;
  stats.step = step;
  stats.num_running = static_cast<uint32_t>(scheduler.num_running());
  stats.num_waiting = static_cast<uint32_t>(scheduler.num_waiting());
  stats.num_free_blocks = static_cast<uint32_t>(scheduler.blocks().pool().num_free());
  stats.num_blocks = static_cast<uint32_t>(config.num_blocks);
  stats.num_preemptions = scheduler.num_preemptions();
  stats.prefix_cache_queries = scheduler.prefix_cache_queries();
  stats.prefix_cache_hits = scheduler.prefix_cache_hits();
  stats.num_prompt_tokens = num_prompt_tokens;
  stats.num_generation_tokens = num_generation_tokens;
  return stats;
}

int64_t monotonic_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

EngineCore::EngineCore(EngineConfig config, TokenTable token_table, EngineClock clock)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(token_table), std::move(clock))) {}

EngineCore::~EngineCore() = default;

const EngineConfig& EngineCore::config() const { return impl_->config; }
const TokenTable& EngineCore::token_table() const { return impl_->table; }

void EngineCore::add_request(NewRequest request) {
  const int32_t vocab_size = impl_->config.vocab_size;
  const SamplingParams& params = request.params;
  const int32_t max_total_tokens = max_total_tokens_of(request, impl_->config, impl_->max_total_tokens);
  validate(params, vocab_size);
  require_a_token(params, impl_->config.eos_token_ids, vocab_size);
  if (request.priority != 0 && impl_->config.scheduling_policy != SchedulingPolicy::kPriority) {
    throw InvalidArgument("priority", std::to_string(request.priority),
                          "0, unless model.json says \"scheduling_policy\": \"priority\"");
  }
  if (impl_->requests.contains(request.request_id)) {
    throw InvalidArgument("request_id", std::to_string(request.request_id), "an id that no live request has");
  }

  const int64_t now_ns = impl_->clock();
  const uint64_t seed = params.seed ? static_cast<uint64_t>(*params.seed) : impl_->seeds.next();
  Sequences sequences;
  const auto stops = make_stop_matcher(params);
  const auto edits = make_logit_edits(params, impl_->config.eos_token_ids);
  for (uint32_t i = 0; i < static_cast<uint32_t>(params.n); ++i) {
    sequences.push_back(
        make_sequence(request, impl_->config, impl_->table, max_total_tokens, seed, i, stops, edits));
    if (sequences.back()->cold.arrival_ns == 0) sequences.back()->cold.arrival_ns = now_ns;
  }
  const Sequences& live = impl_->requests.emplace(request.request_id, std::move(sequences)).first->second;
  try {
    for (size_t i = 0; i < live.size(); ++i)
      impl_->scheduler.add(*live[i], i == 0 ? nullptr : live[i - 1].get());
    if (request.deadline_ns != 0) {
      impl_->deadlines.set(request.request_id, impl_->due_ns(live));
      impl_->end_due(now_ns);
    }
  } catch (...) {  // out of memory
    impl_->drop(request.request_id);
    throw;
  }
}

void EngineCore::cancel(uint64_t request_id) { impl_->end_early(request_id, FinishReason::kCancelled, ""); }

void EngineCore::clear() {
  while (!impl_->requests.empty()) impl_->drop(impl_->requests.begin()->first);
  impl_->scheduler.forget_batches();
  impl_->finished.clear();
  impl_->outputs.clear();
  impl_->ends.clear();
}

void EngineCore::fail(uint64_t request_id, const std::string& message) {
  impl_->end_early(request_id, FinishReason::kError, message);
}

bool EngineCore::has_unfinished_requests() const {
  return !impl_->requests.empty() || !impl_->ends.releases.empty() || num_batches_in_flight() > 0;
}

const Batch& EngineCore::schedule() {
  if (num_batches_in_flight() >= impl_->config.max_batches_in_flight) {
    throw InvalidArgument("schedule", std::to_string(num_batches_in_flight()) + " batches in flight",
                          "fewer than max_batches_in_flight (" +
                              std::to_string(impl_->config.max_batches_in_flight) +
                              "): update() the oldest, or forget_batches()");
  }
  const int64_t now_ns = impl_->clock();
  impl_->end_due(now_ns);
  return impl_->scheduler.schedule(now_ns);
}

int32_t EngineCore::num_batches_in_flight() const { return impl_->scheduler.num_batches_in_flight(); }

void EngineCore::forget_batches() { impl_->scheduler.forget_batches(); }

const StepOutputs& EngineCore::update(std::span<const int32_t> sampled, const StepLogprobs& logprobs) {
  Impl& impl = *impl_;
  Scheduler& scheduler = impl.scheduler;
  if (num_batches_in_flight() == 0) {
    throw InvalidArgument("sampled", "ids", "one update() after each schedule() of tokens");
  }
  const Batch& batch = scheduler.oldest();
  if (sampled.size() != static_cast<size_t>(batch.num_sampled)) {
    throw InvalidArgument("sampled", std::to_string(sampled.size()) + " ids",
                          std::to_string(batch.num_sampled) + ", the batch's num_sampled");
  }
  for (int32_t id : sampled) {
    if (id != kNoToken && (id < 0 || id >= impl.config.vocab_size)) {
      throw InvalidArgument("sampled", std::to_string(id),
                            "0 to " + std::to_string(impl.config.vocab_size - 1) + " (vocab_size), or " +
                                std::to_string(kNoToken) + " (no token)");
    }
  }
  if (batch.has_logprobs) logprobs.sampled.require("logprobs", batch.num_sampled);
  if (batch.num_prompt_rows > 0) logprobs.prompt.require("prompt_logprobs", batch.num_prompt_rows);

  // A batch runs after the one before.
  const int64_t now_ns = impl.clock();
  impl.prefill_rate.add_step(batch.num_tokens,
                             now_ns - std::max(scheduler.oldest_scheduled_ns(), impl.updated_ns));
  impl.updated_ns = now_ns;
  impl.end_due(now_ns);
  impl.begin_outputs();
  if (batch.num_prompt_rows > 0) impl.take_prompt_logprobs(batch, logprobs.prompt);
  int32_t sample_idx = 0;
  for (int32_t i = 0; i < batch.num_reqs; ++i) {
    const bool is_sampled = sample_idx < batch.num_sampled && batch.sample_req_idx[sample_idx] == i;
    const int32_t id = is_sampled ? sampled[sample_idx++] : -1;
    auto* request = static_cast<LiveRequest*>(scheduler.request(i));
    if (i + kPrefetchDistance < batch.num_reqs) {
      prefetch(scheduler.request(i + kPrefetchDistance), kNumUpdateBytes);
    }
    if (!request) continue;  // ended, or cancelled, after it was scheduled
    if (is_sampled && id == kNoToken) {
      // Not complete(): what this step computed must not be found by other requests.
      impl.end(*request, FinishReason::kError, impl.outputs);
      impl.outputs.releases.back().error = no_token_error(request->edits.get());
      scheduler.finish(*request);
      impl.finished.push_back(request);
      continue;
    }
    scheduler.complete(i, is_sampled);
    if (request->num_counted_prompt_tokens < request->num_prompt_tokens) {
      // Tokens found in the cache were not computed, and a fork's are its sibling's.
      if (request->is_forked) request->num_counted_prompt_tokens = request->num_prompt_tokens;
      const int32_t before = std::max(request->num_counted_prompt_tokens, request->num_cached_tokens);
      const int32_t now = std::min(request->num_computed_tokens, request->num_prompt_tokens);
      if (now > before) impl.num_prompt_tokens += static_cast<uint64_t>(now - before);
      request->num_counted_prompt_tokens = std::max(before, now);
      if (is_sampled) request->history->first_token_ns = now_ns;
    }
    if (!is_sampled) continue;
    if (request->logprobs) request->logprobs->push(id, logprobs.sampled, sample_idx - 1);
    const FinishReason reason = impl.accept(*request, id);
    if (reason != FinishReason::kNone) {
      impl.end(*request, reason, impl.outputs);
      scheduler.finish(*request);
      impl.finished.push_back(request);
    } else if (request->gate.has_ready()) {
      append_run(*request, request->gate.take_ready(), impl.outputs);
    }
  }
  scheduler.end_step();
  for (const LiveRequest* request : impl.finished) impl.erase(*request);
  impl.finished.clear();
  ++impl.step;
  impl.outputs.stats = impl.stats();
  return impl.outputs;
}

const StepOutputs& EngineCore::take_outputs() {
  impl_->begin_outputs();
  impl_->outputs.stats = impl_->stats();
  return impl_->outputs;
}

const StepOutputs& EngineCore::outputs() const { return impl_->outputs; }

EngineStats EngineCore::stats() const { return impl_->stats(); }

void EngineCore::check_integrity() const {
  const Scheduler& scheduler = impl_->scheduler;
  scheduler.check_integrity();
  int32_t num_live = 0;
  for (const auto& [request_id, sequences] : impl_->requests) {
    const int32_t num_live_before = num_live;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const LiveRequest* request = sequences[i].get();
      if (!request) continue;
      ++num_live;
      QUIRE_CHECK(request->request_id == request_id && request->index == i,
                  request_id << " is " << request->request_id << ", sequence " << request->index);
      QUIRE_CHECK(request->gate.num_held() <= static_cast<uint32_t>(request->num_output_tokens()),
                  "request " << request_id << " holds " << request->gate.num_held() << " ids");
    }
    QUIRE_CHECK(num_live > num_live_before, "request " << request_id << " has ended");
  }
  QUIRE_CHECK(num_live == scheduler.num_running() + scheduler.num_waiting(),
              scheduler.num_running()
                  << " running, " << scheduler.num_waiting() << " waiting, " << num_live << " live");
}

}  // namespace quire
