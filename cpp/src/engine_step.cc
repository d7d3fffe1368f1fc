// EngineCore: steps. A batch is scheduled; its ids come back and go to their sequences.
#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "quire/engine_core.h"
#include "quire/error.h"

namespace quire {

void EngineCore::begin_outputs() {
  outputs_.clear();
  std::swap(outputs_, ends_);
}

// The sequence's next id. Returns why the sequence ends with it, or kNone.
FinishReason EngineCore::accept(LiveSequence& sequence, int32_t id) {
  const int32_t output_idx = sequence.num_output_tokens();
  sequence.token_ids.push_back(id);
  ++scheduler_.totals().num_generation_tokens;
  if (output_idx >= sequence.min_tokens &&
      std::binary_search(sequence.end_ids.begin(), sequence.end_ids.end(), id)) {
    if (sequence.include_stop) {
      sequence.gate.push(id, false);
    } else {
      sequence.gate.push_silent();
    }
    return FinishReason::kStop;
  }
  if (sequence.gate.push(id, output_idx >= sequence.min_tokens)) return FinishReason::kStop;
  return sequence.num_tokens() >= sequence.max_total_tokens ? FinishReason::kLength : FinishReason::kNone;
}

// A run ends before an id that the sequence's mask could have made another one: it was drawn under the mask
// of the first. Returns why the sequence ends with the run, or kNone.
FinishReason EngineCore::accept_run(LiveSequence& sequence, std::span<const int32_t> run,
                                    const LogprobRows& rows, int32_t first_row) {
  const auto is_mask_other = [&] {
    const auto output =
        std::span(sequence.token_ids).subspan(static_cast<size_t>(sequence.num_prompt_tokens));
    return sequence.adjustments && sequence.adjustments->mask.changes({sequence.num_output_tokens(), output});
  };
  for (int32_t i = 0; i < static_cast<int32_t>(run.size()); ++i) {
    const int32_t id = run[static_cast<size_t>(i)];
    if (i > 0 && (id == kNoToken || is_mask_other())) break;
    if (sequence.logprobs) sequence.logprobs->push(id, rows, first_row + i);
    const FinishReason reason = accept(sequence, id);
    if (reason != FinishReason::kNone) return reason;
  }
  // The sampler has counted dropped ids, too.
  if (run.size() > 1) sequence.has_written_tables = false;
  return FinishReason::kNone;
}

// Throws InvalidArgument unless ids and counts fit the batch.
void EngineCore::check(const Batch& batch, std::span<const int32_t> sampled,
                       std::span<const int32_t> counts) const {
  const auto refuse = [](const char* field, const std::string& given, const std::string& allowed) {
    throw InvalidArgument(field, given, allowed);
  };
  const auto num_sampled = [&] { return std::to_string(batch.num_sampled) + ", the batch's num_sampled"; };
  int64_t num_ids = batch.num_sampled;
  if (!counts.empty()) {
    if (counts.size() != static_cast<size_t>(batch.num_sampled)) {
      refuse("counts", std::to_string(counts.size()) + " counts", num_sampled());
    }
    const bool is_alone = scheduler_.num_batches_in_flight() == 1;
    num_ids = 0;
    for (const int32_t count : counts) {
      if (count < 1 || (count > 1 && !is_alone)) {
        refuse("counts", std::to_string(count),
               is_alone ? "at least 1" : "1 while another batch is in flight, which goes on after one id");
      }
      num_ids += count;
    }
  }
  if (sampled.size() != static_cast<size_t>(num_ids)) {
    refuse("sampled", std::to_string(sampled.size()) + " ids",
           counts.empty() ? num_sampled() : std::to_string(num_ids) + ", the sum of counts");
  }
  for (const int32_t id : sampled) {
    if (id != kNoToken && (id < 0 || id >= config_.vocab_size)) {
      refuse("sampled", std::to_string(id),
             "0 to " + std::to_string(config_.vocab_size - 1) + " (vocab_size), or " +
                 std::to_string(kNoToken) + " (no token)");
    }
  }
}

void EngineCore::take_prompt_logprobs(const Batch& batch, const LogprobRows& rows) {
  for (int32_t row = 0; row < batch.num_prompt_rows; ++row) {
    auto* sequence = static_cast<LiveSequence*>(scheduler_.sequence(batch.prompt_seq_idx[row]));
    if (!sequence) continue;  // ended meanwhile
    const int32_t place = batch.positions[batch.prompt_token_idx[row]];
    // A preempted sequence may have been scheduled again before this was known; then it comes twice.
    if (place < sequence->num_known_prompt_logprobs) continue;
    sequence->logprobs->set_prompt(place, batch.prompt_next_ids[row], rows, row);
    sequence->num_known_prompt_logprobs = place + 1;
  }
}

void EngineCore::erase(const LiveSequence& sequence) {
  const auto found = requests_.find(sequence.request_id);
  Sequences& sequences = found->second;
  sequences[sequence.index].reset();
  if (std::none_of(sequences.begin(), sequences.end(), [](const auto& s) { return s != nullptr; })) {
    deadlines_.remove(found->first);
    requests_.erase(found);
  }
}

const Batch& EngineCore::schedule() {
  if (num_batches_in_flight() >= config_.max_batches_in_flight) {
    throw InvalidArgument("schedule", std::to_string(num_batches_in_flight()) + " batches in flight",
                          "fewer than max_batches_in_flight (" +
                              std::to_string(config_.max_batches_in_flight) +
                              "): update() the oldest, or forget_batches()");
  }
  const int64_t now_ns = clock_();
  end_due(now_ns);
  return scheduler_.schedule(now_ns);
}

const StepOutputs& EngineCore::update(std::span<const int32_t> sampled, const StepLogprobs& logprobs,
                                      std::span<const int32_t> counts) {
  if (num_batches_in_flight() == 0) {
    throw InvalidArgument("sampled", "ids", "one update() after each schedule() of tokens");
  }
  const Batch& batch = scheduler_.oldest();
  check(batch, sampled, counts);
  if (batch.has_logprobs) logprobs.sampled.require("logprobs", static_cast<int32_t>(sampled.size()));
  if (batch.num_prompt_rows > 0) logprobs.prompt.require("prompt_logprobs", batch.num_prompt_rows);

  // A batch runs after the one before.
  const int64_t now_ns = clock_();
  prefill_rate_.add_step(batch.num_tokens, now_ns - std::max(scheduler_.oldest_scheduled_ns(), updated_ns_));
  updated_ns_ = now_ns;
  end_due(now_ns);
  begin_outputs();
  const EngineStats& totals = scheduler_.totals();
  const uint64_t num_tokens_before = totals.num_prompt_tokens + totals.num_generation_tokens;
  if (batch.num_prompt_rows > 0) take_prompt_logprobs(batch, logprobs.prompt);
  int32_t next_row = 0;  // of the ids
  for (int32_t i = 0; i < batch.num_seqs; ++i) {
    const int32_t sample_idx = batch.sample_offsets[i];
    const bool is_sampled = batch.sample_offsets[i + 1] > sample_idx;
    const int32_t first_row = next_row;
    if (is_sampled) next_row += counts.empty() ? 1 : counts[static_cast<size_t>(sample_idx)];
    const auto run =
        sampled.subspan(static_cast<size_t>(first_row), static_cast<size_t>(next_row - first_row));
    auto* sequence = static_cast<LiveSequence*>(scheduler_.sequence(i));
    if (i + kPrefetchDistance < batch.num_seqs) {
      prefetch(scheduler_.sequence(i + kPrefetchDistance), kNumUpdateBytes);
    }
    if (!sequence) continue;  // ended, or cancelled, after it was scheduled
    if (is_sampled && run.front() == kNoToken) {
      // Not complete(): what this step computed must not be found by other requests.
      end(*sequence, FinishReason::kError, outputs_);
      outputs_.releases.back().add_details().error = no_token_error(sequence->adjustments.get());
      scheduler_.finish(*sequence);
      finished_.push_back(sequence);
      continue;
    }
    scheduler_.complete(i, is_sampled);
    if (!is_sampled) continue;
    count_tokens(*sequence, now_ns);
    const FinishReason reason = accept_run(*sequence, run, logprobs.sampled, first_row);
    if (reason != FinishReason::kNone) {
      end(*sequence, reason, outputs_);
      scheduler_.finish(*sequence);
      finished_.push_back(sequence);
    } else if (sequence->gate.has_ready()) {
      append_run(*sequence, sequence->gate.take_ready(), outputs_);
    }
  }
  scheduler_.end_step();
  for (const LiveSequence* sequence : finished_) erase(*sequence);
  finished_.clear();
  ++scheduler_.totals().step;
  const uint64_t num_tokens = totals.num_prompt_tokens + totals.num_generation_tokens - num_tokens_before;
  observe(outputs_, Histogram::kStepTokens, static_cast<double>(num_tokens));
  outputs_.stats = stats();
  return outputs_;
}

const StepOutputs& EngineCore::take_outputs() {
  begin_outputs();
  outputs_.stats = stats();
  return outputs_;
}

}  // namespace quire
