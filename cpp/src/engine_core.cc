#include "quire/engine_core.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>

#include "engine_core_impl.h"
#include "intake.h"
#include "quire/error.h"

namespace quire {
namespace {

EngineConfig validated(EngineConfig config) {
  validate(config);
  return config;
}

uint64_t random_salt() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

}  // namespace

EngineCore::Impl::Impl(EngineConfig engine_config, TokenTable token_table, EngineClock engine_clock)
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

// The sequence's last release. The scheduler still has it.
void EngineCore::Impl::end(LiveSequence& sequence, FinishReason reason, StepOutputs& out) const {
  append_end(sequence, reason, out);
  if (!sequence.return_receipt) return;
  out.releases.back().add_details().timing = make_timing(sequence, scheduler.waits(sequence), clock());
}

void EngineCore::Impl::end_early(uint64_t request_id, FinishReason reason, const std::string& error) {
  const auto found = requests.find(request_id);
  if (found != requests.end()) {
    for (const auto& sequence : found->second) {
      if (!sequence) continue;
      end(*sequence, reason, ends);
      if (!error.empty()) ends.releases.back().add_details().error = error;
      scheduler.remove(*sequence);
    }
    deadlines.remove(request_id);
    requests.erase(found);
  } else if (reason == FinishReason::kError) {
    Release& release = ends.releases.emplace_back();
    release.request_id = request_id;
    release.finish_reason = reason;
    release.add_details().error = error;
  }
}

// Takes a request out without an end, whatever state an exception left it in. Allocates nothing.
void EngineCore::Impl::drop(uint64_t request_id) {
  const auto found = requests.find(request_id);
  if (found == requests.end()) return;
  for (const auto& sequence : found->second) {
    if (!sequence) continue;
    const bool is_scheduled =
        sequence->status == Sequence::Status::kWaiting || sequence->status == Sequence::Status::kRunning;
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
  EngineStats stats = scheduler.totals();
  stats.num_running = static_cast<uint32_t>(scheduler.num_running());
  stats.num_waiting = static_cast<uint32_t>(scheduler.num_waiting());
  stats.num_free_blocks = static_cast<uint32_t>(scheduler.blocks().pool().num_free());
  stats.num_blocks = static_cast<uint32_t>(scheduler.blocks().num_blocks());
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
  const auto adjustments = make_logit_adjustments(params, impl_->config.eos_token_ids);
  for (uint32_t i = 0; i < static_cast<uint32_t>(params.n); ++i) {
    sequences.push_back(
        make_sequence(request, impl_->config, impl_->table, max_total_tokens, seed, i, stops, adjustments));
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

const StepOutputs& EngineCore::outputs() const { return impl_->outputs; }

EngineStats EngineCore::stats() const { return impl_->stats(); }

void EngineCore::check_integrity() const {
  const Scheduler& scheduler = impl_->scheduler;
  scheduler.check_integrity();
  int32_t num_live = 0;
  for (const auto& [request_id, sequences] : impl_->requests) {
    const int32_t num_live_before = num_live;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const LiveSequence* sequence = sequences[i].get();
      if (!sequence) continue;
      ++num_live;
      QUIRE_CHECK(sequence->request_id == request_id && sequence->index == i,
                  request_id << " is " << sequence->request_id << ", sequence " << sequence->index);
      QUIRE_CHECK(sequence->gate.num_held() <= static_cast<uint32_t>(sequence->num_output_tokens()),
                  "request " << request_id << " holds " << sequence->gate.num_held() << " ids");
    }
    QUIRE_CHECK(num_live > num_live_before, "request " << request_id << " has ended");
  }
  QUIRE_CHECK(num_live == scheduler.num_running() + scheduler.num_waiting(),
              scheduler.num_running()
                  << " running, " << scheduler.num_waiting() << " waiting, " << num_live << " live");
}

}  // namespace quire
