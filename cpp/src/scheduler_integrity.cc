// Scheduler: what always holds between its parts.
#include <algorithm>
#include <numeric>

#include "quire/error.h"
#include "quire/scheduler.h"

namespace quire {

void Scheduler::check_integrity() const {
  blocks_.check_integrity();
  QUIRE_CHECK(blocks_.num_open_rows() == num_running(), blocks_.num_open_rows()
                                                            << " open rows, " << num_running() << " running");
  std::vector<bool> is_taken(static_cast<size_t>(blocks_.num_rows()), false);
  for (const Sequence* sequence : running_) {
    const auto where = [&] { return "sequence " + std::to_string(sequence->request_id); };
    QUIRE_CHECK(sequence->status == Sequence::Status::kRunning, where());
    QUIRE_CHECK(sequence->row >= 0 && blocks_.is_open(sequence->row) && !is_taken[sequence->row],
                where() << ", row " << sequence->row);
    is_taken[sequence->row] = true;
    const auto num_blocks = static_cast<int32_t>(blocks_.blocks(sequence->row).size());
    QUIRE_CHECK(sequence->num_computed_tokens < sequence->num_tokens(),
                where() << ": " << sequence->num_computed_tokens << " of " << sequence->num_tokens());
    QUIRE_CHECK(
        sequence->num_computed_ahead() <= num_blocks * config_.block_size,
        where() << ": " << sequence->num_computed_ahead() << " computed, " << num_blocks << " blocks");
    QUIRE_CHECK(sequence->num_computed_ahead() < sequence->num_tokens_ahead(),
                where() << ": " << sequence->num_computed_ahead() << " of " << sequence->num_tokens_ahead());
    // Room is taken for ids that are not known yet, or were on their way before forget_batches().
    const int32_t num_tokens = sequence->num_tokens() + config_.max_batches_in_flight - 1;
    QUIRE_CHECK((num_blocks - 1) * config_.block_size < num_tokens,
                where() << ": " << num_tokens << " tokens, " << num_blocks << " blocks");
    QUIRE_CHECK(sequence->num_tokens_ahead() <= sequence->max_total_tokens, where());
    check_entries(*sequence);
    check_siblings(*sequence);
    check_written_blocks(*sequence);
  }
  const auto by_order = [](const Sequence* a, const Sequence* b) { return a->goes_before(*b); };
  QUIRE_CHECK(std::is_sorted(running_.begin(), running_.end(), by_order), num_running() << " running");
  int32_t num_waiting = 0;
  const Sequence* previous = nullptr;
  for (const Sequence* sequence = waiting_head_; sequence; previous = sequence, sequence = sequence->next) {
    QUIRE_CHECK(sequence->status == Sequence::Status::kWaiting && sequence->row < 0 &&
                    sequence->previous == previous && sequence->num_computed_ahead() == 0 &&
                    (!previous || previous->goes_before(*sequence)),
                "sequence " << sequence->request_id);
    check_entries(*sequence);
    check_siblings(*sequence);
    QUIRE_CHECK(++num_waiting <= num_waiting_, "queue of " << num_waiting_);
  }
  QUIRE_CHECK(num_waiting == num_waiting_ && previous == waiting_tail_,
              num_waiting << " of " << num_waiting_);
  QUIRE_CHECK(num_in_flight_ >= 0 && num_in_flight_ <= config_.max_batches_in_flight,
              num_in_flight_ << " batches are in flight");
}

// What the sequence has in batches in flight is what the batches say; no other batch knows it.
void Scheduler::check_entries(const Sequence& sequence) const {
  int32_t num_entries = 0;
  int32_t num_scheduled = 0;
  int32_t num_sampled = 0;
  for (int32_t i = 0; i < num_in_flight_; ++i) {
    const BatchInFlight& slot = in_flight_[(oldest_ + i) % config_.max_batches_in_flight];
    const Batch& batch = slot.batch;
    for (int32_t idx = 0; idx < batch.num_seqs; ++idx) {
      if (slot.sequences[idx] != &sequence) continue;
      ++num_entries;
      num_scheduled += slot.num_new_tokens[idx];
      num_sampled += batch.sample_offsets[idx + 1] - batch.sample_offsets[idx];
    }
  }
  QUIRE_CHECK(num_entries == sequence.num_entries && num_scheduled == sequence.num_scheduled_tokens &&
                  num_sampled == sequence.num_pending_ids,
              "sequence " << sequence.request_id << ": " << num_entries << ", " << num_scheduled << " and "
                          << num_sampled << " in batches, " << sequence.num_entries << ", "
                          << sequence.num_scheduled_tokens << " and " << sequence.num_pending_ids
                          << " counted");
}

}  // namespace quire
