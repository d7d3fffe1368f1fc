#include "quire/engine_core.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>

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

EngineCore::EngineCore(EngineConfig config, TokenTable token_table, EngineClock clock)
    : config_(validated(std::move(config))),
      table_(std::move(token_table)),
      clock_(std::move(clock)),
      // A secret salt: block hashes of one engine cannot be prepared by its clients.
      scheduler_(config_, random_salt()),
      seed_state_(config_.seed),
      prefill_rate_(config_.max_num_batched_tokens) {
  // A pool may be smaller than max_model_len. The last token of a request needs no KV.
  const int64_t num_slots = static_cast<int64_t>(config_.num_blocks) * config_.block_size;
  max_total_tokens_ = static_cast<int32_t>(std::min<int64_t>(config_.max_model_len, num_slots + 1));
  outputs_.releases.reserve(static_cast<size_t>(config_.max_num_seqs));
  outputs_.token_ids.reserve(4 * static_cast<size_t>(config_.max_num_seqs));
  finished_.reserve(static_cast<size_t>(config_.max_num_seqs));
}

// The sequence's last release. The scheduler still has it.
void EngineCore::end(LiveSequence& sequence, FinishReason reason, StepOutputs& out) {
  append_end(sequence, reason, out);
  count_end(sequence, reason, out);
  if (!sequence.return_receipt) return;
  // As histograms have it, where one does.
  const int64_t end_ns = is_success(reason) ? sequence.last_token_ns : clock_();
  out.releases.back().add_details().timing = make_timing(sequence, scheduler_.waits(sequence), end_ns);
}

void EngineCore::end_early(uint64_t request_id, FinishReason reason, const std::string& error) {
  const auto found = requests_.find(request_id);
  if (found != requests_.end()) {
    for (const auto& sequence : found->second) {
      if (!sequence) continue;
      end(*sequence, reason, ends_);
      if (!error.empty()) ends_.releases.back().add_details().error = error;
      scheduler_.remove(*sequence);
    }
    deadlines_.remove(request_id);
    requests_.erase(found);
  } else if (reason == FinishReason::kError) {
    Release& release = ends_.releases.emplace_back();
    release.request_id = request_id;
    release.finish_reason = reason;
    release.add_details().error = error;
  }
}

// Takes a request out without an end, whatever state an exception left it in. Allocates nothing.
void EngineCore::drop(uint64_t request_id) {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return;
  for (const auto& sequence : found->second) {
    if (!sequence) continue;
    const bool is_scheduled =
        sequence->status == Sequence::Status::kWaiting || sequence->status == Sequence::Status::kRunning;
    if (is_scheduled) scheduler_.finish(*sequence);
  }
  scheduler_.drop_finished();
  deadlines_.remove(request_id);
  requests_.erase(found);
}

// To be computed before the first token of any of them; 0 once there is one.
int32_t EngineCore::num_prompt_tokens_left(const Sequences& sequences) const {
  int32_t num_left = INT32_MAX;
  for (const auto& sequence : sequences) {
    num_left = std::min(num_left, sequence ? scheduler_.num_prompt_tokens_left(*sequence) : 0);
  }
  return num_left;
}

// When the request must be looked at: at its deadline, or when the rest of its prompt could at best be
// computed just in time.
int64_t EngineCore::due_ns(const Sequences& sequences) const {
  const auto live =
      std::find_if(sequences.begin(), sequences.end(), [](const auto& s) { return s != nullptr; });
  return (*live)->cold.deadline_ns - prefill_rate_.least_ns(num_prompt_tokens_left(sequences));
}

void EngineCore::end_due(int64_t now_ns) {
  while (const auto request_id = deadlines_.due(now_ns)) {
    const Sequences& sequences = requests_.at(*request_id);
    const int64_t due = due_ns(sequences);
    if (due > now_ns) {
      deadlines_.set(*request_id, due);
      continue;
    }
    const bool has_output = std::any_of(sequences.begin(), sequences.end(), [](const auto& sequence) {
      return !sequence || sequence->num_output_tokens() > 0;
    });
    end_early(*request_id, FinishReason::kDeadline,
              has_output ? ""
                         : explain_deadline(*sequences.front(), now_ns, num_prompt_tokens_left(sequences),
                                            prefill_rate_));
  }
}

EngineStats EngineCore::stats() const {
  EngineStats stats = scheduler_.totals();
  stats.num_running = static_cast<uint32_t>(scheduler_.num_running());
  stats.num_waiting = static_cast<uint32_t>(scheduler_.num_waiting());
  stats.num_free_blocks = static_cast<uint32_t>(scheduler_.blocks().pool().num_free());
  stats.num_blocks = static_cast<uint32_t>(scheduler_.blocks().num_blocks());
  stats.kv_cache_usage = 1.0 - static_cast<double>(stats.num_free_blocks) / stats.num_blocks;
  return stats;
}

int64_t monotonic_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

void EngineCore::add_request(NewRequest request) {
  const int32_t vocab_size = config_.vocab_size;
  const SamplingParams& params = request.params;
  const int32_t max_total_tokens = max_total_tokens_of(request, config_, max_total_tokens_);
  validate(params, vocab_size);
  require_a_token(params, config_.eos_token_ids, vocab_size);
  if (request.priority != 0 && config_.scheduling_policy != SchedulingPolicy::kPriority) {
    throw InvalidArgument("priority", std::to_string(request.priority),
                          "0, unless model.json says \"scheduling_policy\": \"priority\"");
  }
  if (requests_.contains(request.request_id)) {
    throw InvalidArgument("request_id", std::to_string(request.request_id), "an id that no live request has");
  }

  const int64_t now_ns = clock_();
  const uint64_t seed =
      params.seed ? static_cast<uint64_t>(*params.seed) : mix_bits(seed_state_ += kSeedStep);
  Sequences sequences;
  const auto stops = make_stop_matcher(params);
  const auto adjustments = make_logit_adjustments(params, config_.eos_token_ids);
  const auto n = static_cast<uint32_t>(params.n);
  const auto siblings = n > 1 ? std::make_shared<Siblings>(Siblings{n, n}) : nullptr;
  for (uint32_t i = 0; i < n; ++i) {
    sequences.push_back(
        make_sequence(request, config_, table_, max_total_tokens, seed, i, stops, adjustments));
    LiveSequence::Cold& cold = sequences.back()->cold;
    if (cold.arrival_ns == 0) cold.arrival_ns = now_ns;
    cold.siblings = siblings;
  }
  const Sequences& live = requests_.emplace(request.request_id, std::move(sequences)).first->second;
  try {
    for (size_t i = 0; i < live.size(); ++i) scheduler_.add(*live[i], i == 0 ? nullptr : live[i - 1].get());
    if (request.deadline_ns != 0) {
      deadlines_.set(request.request_id, due_ns(live));
      end_due(now_ns);
    }
  } catch (...) {  // out of memory
    drop(request.request_id);
    throw;
  }
}

void EngineCore::clear() {
  while (!requests_.empty()) drop(requests_.begin()->first);
  scheduler_.forget_batches();
  finished_.clear();
  outputs_.clear();
  ends_.clear();
}

bool EngineCore::has_unfinished_requests() const {
  return !requests_.empty() || !ends_.releases.empty() || num_batches_in_flight() > 0;
}

void EngineCore::check_integrity() const {
  scheduler_.check_integrity();
  int32_t num_live = 0;
  for (const auto& [request_id, sequences] : requests_) {
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
  QUIRE_CHECK(num_live == scheduler_.num_running() + scheduler_.num_waiting(),
              scheduler_.num_running()
                  << " running, " << scheduler_.num_waiting() << " waiting, " << num_live << " live");
}

}  // namespace quire
