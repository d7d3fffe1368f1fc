#include "quire/engine_core.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>

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
  Impl(EngineConfig engine_config, TokenTable token_table)
      : config(validated(std::move(engine_config))),
        table(std::move(token_table)),
        // A secret salt: block hashes of one engine cannot be prepared by its clients.
        scheduler(config, random_salt()),
        seeds(config.seed) {
    // A pool may be smaller than max_model_len. The last token of a request needs no KV.
    const int64_t num_slots = static_cast<int64_t>(config.num_blocks) * config.block_size;
    max_total_tokens = static_cast<int32_t>(std::min<int64_t>(config.max_model_len, num_slots + 1));
    outputs.releases.reserve(static_cast<size_t>(config.max_num_seqs));
    outputs.token_ids.reserve(4 * static_cast<size_t>(config.max_num_seqs));
    finished.reserve(static_cast<size_t>(config.max_num_seqs));
  }

  EngineConfig config;
  TokenTable table;
  Scheduler scheduler;
  SeedSequence seeds;
  int32_t max_total_tokens = 0;  // of any request
  std::unordered_map<uint64_t, Sequences> requests;
  StepOutputs outputs;
  StepOutputs ends;  // of cancelled and failed requests, until the next outputs
  std::vector<LiveRequest*> finished;
  uint64_t step = 0;
  uint64_t num_prompt_tokens = 0;
  uint64_t num_generation_tokens = 0;

  int32_t check_lengths(const NewRequest& request) const;
  void begin_outputs();
  FinishReason accept(LiveRequest& request, int32_t id);
  void take_prompt_logprobs(const Batch& batch, const LogprobRows& rows);
  void erase(const LiveRequest& request);
  void end_early(uint64_t request_id, FinishReason reason, const std::string& error);
  EngineStats stats() const;
};

// Returns how long the request may get.
int32_t EngineCore::Impl::check_lengths(const NewRequest& request) const {
  const auto num_prompt = static_cast<int64_t>(request.prompt_ids.size());
  if (num_prompt == 0) throw InvalidArgument("prompt_ids", "no tokens", "at least 1 token");
  if (num_prompt >= config.max_model_len) {
    throw InvalidArgument("prompt_ids", std::to_string(num_prompt) + " tokens",
                          "1 to " + std::to_string(config.max_model_len - 1) + " tokens (max_model_len " +
                              std::to_string(config.max_model_len) + " must leave room for one more)");
  }
  const std::string pool = "the KV cache has " + std::to_string(config.num_blocks) + " blocks of " +
                           std::to_string(config.block_size) + " tokens";
  if (num_prompt >= max_total_tokens) {
    throw InvalidArgument("prompt_ids", std::to_string(num_prompt) + " tokens",
                          "1 to " + std::to_string(max_total_tokens - 1) + " tokens (" + pool + ")");
  }
  for (int32_t id : request.prompt_ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw InvalidArgument("prompt_ids", std::to_string(id),
                            "0 to " + std::to_string(config.vocab_size - 1) + " (vocab_size)");
    }
  }
  const int32_t limit = config.max_output_tokens > 0 ? config.max_output_tokens : INT32_MAX;
  for (const auto& [field, value] : {std::pair("max_tokens", request.params.max_tokens),
                                     std::pair("min_tokens", request.params.min_tokens)}) {
    if (value > limit) {
      throw InvalidArgument(field, std::to_string(value),
                            "at most " + std::to_string(limit) + " (max_output_tokens of the server)");
    }
  }
  if (request.params.max_tokens == 0) {
    return static_cast<int32_t>(std::min<int64_t>(max_total_tokens, num_prompt + limit));
  }
  const int64_t wanted = std::min<int64_t>(num_prompt + request.params.max_tokens, config.max_model_len);
  if (wanted > max_total_tokens) {
    throw InvalidArgument(
        "max_tokens", std::to_string(request.params.max_tokens),
        "at most " + std::to_string(max_total_tokens - num_prompt) + " with this prompt (" + pool + ")");
  }
  return static_cast<int32_t>(wanted);
}

void EngineCore::Impl::begin_outputs() {
  outputs.clear();
  std::swap(outputs, ends);
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
      append_end(*sequence, reason, ends);
      ends.releases.back().error = error;
      scheduler.remove(*sequence);
    }
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
    requests.erase(found);
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

EngineCore::EngineCore(EngineConfig config, TokenTable token_table)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(token_table))) {}

EngineCore::~EngineCore() = default;

const EngineConfig& EngineCore::config() const { return impl_->config; }
const TokenTable& EngineCore::token_table() const { return impl_->table; }

void EngineCore::add_request(NewRequest request) {
  const int32_t vocab_size = impl_->config.vocab_size;
  const SamplingParams& params = request.params;
  const int32_t max_total_tokens = impl_->check_lengths(request);
  validate(params, vocab_size);
  if (impl_->requests.contains(request.request_id)) {
    throw InvalidArgument("request_id", std::to_string(request.request_id), "an id that no live request has");
  }

  const uint64_t seed = params.has_seed ? static_cast<uint64_t>(params.seed) : impl_->seeds.next();
  Sequences sequences;
  for (uint32_t i = 0; i < static_cast<uint32_t>(params.n); ++i) {
    sequences.push_back(make_sequence(request, impl_->config, impl_->table, max_total_tokens, seed, i));
  }
  const Sequences& live = impl_->requests.emplace(request.request_id, std::move(sequences)).first->second;
  for (size_t i = 0; i < live.size(); ++i)
    impl_->scheduler.add(*live[i], i == 0 ? nullptr : live[i - 1].get());
}

void EngineCore::cancel(uint64_t request_id) { impl_->end_early(request_id, FinishReason::kCancelled, ""); }

void EngineCore::fail(uint64_t request_id, const std::string& message) {
  impl_->end_early(request_id, FinishReason::kError, message);
}

bool EngineCore::has_unfinished_requests() const {
  return !impl_->requests.empty() || !impl_->ends.releases.empty() || num_batches_out() > 0;
}

const Batch& EngineCore::schedule() {
  if (num_batches_out() >= impl_->config.max_batches_out) {
    throw InvalidArgument("schedule", std::to_string(num_batches_out()) + " batches out",
                          "fewer than max_batches_out (" + std::to_string(impl_->config.max_batches_out) +
                              "): update() the oldest, or forget_batches()");
  }
  return impl_->scheduler.schedule();
}

int32_t EngineCore::num_batches_out() const { return impl_->scheduler.num_batches_out(); }

void EngineCore::forget_batches() { impl_->scheduler.forget_batches(); }

const StepOutputs& EngineCore::update(std::span<const int32_t> sampled, const StepLogprobs& logprobs) {
  Impl& impl = *impl_;
  Scheduler& scheduler = impl.scheduler;
  if (num_batches_out() == 0) {
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

  impl.begin_outputs();
  if (batch.num_prompt_rows > 0) impl.take_prompt_logprobs(batch, logprobs.prompt);
  int32_t sample_idx = 0;
  for (int32_t i = 0; i < batch.num_reqs; ++i) {
    const bool is_sampled = sample_idx < batch.num_sampled && batch.sample_req_idx[sample_idx] == i;
    const int32_t id = is_sampled ? sampled[sample_idx++] : -1;
    auto* request = static_cast<LiveRequest*>(scheduler.request(i));
    if (i + kPrefetchDistance < batch.num_reqs) {
      prefetch(scheduler.request(i + kPrefetchDistance), sizeof(LiveRequest));
    }
    if (!request) continue;  // ended, or cancelled, after it was scheduled
    if (is_sampled && id == kNoToken) {
      // Not complete(): what this step computed must not be found by other requests.
      append_end(*request, FinishReason::kError, impl.outputs);
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
    }
    if (!is_sampled) continue;
    if (request->logprobs) request->logprobs->push(id, logprobs.sampled, sample_idx - 1);
    const FinishReason reason = impl.accept(*request, id);
    if (reason != FinishReason::kNone) {
      append_end(*request, reason, impl.outputs);
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
