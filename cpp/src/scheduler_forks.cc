// Scheduler: sequences of one request that share its prompt.
#include <algorithm>

#include "quire/error.h"
#include "quire/scheduler.h"

namespace quire {

// Only before it is first admitted: later it has tokens of its own, and is recomputed as any sequence.
bool Scheduler::may_fork(const Sequence& sequence) const {
  return sequence.next_sibling && sequence.num_cached_tokens < 0;
}

const Sequence* Scheduler::fork_source(const Sequence& sequence) const {
  if (!may_fork(sequence)) return nullptr;
  for (const Sequence* other = sequence.next_sibling; other != &sequence; other = other->next_sibling) {
    const bool is_running = other->status == Sequence::Status::kRunning;
    if (is_running && other->num_computed_tokens >= other->num_prompt_tokens &&
        blocks_.reaches_back(other->row, other->num_prompt_tokens - 1)) {
      return other;
    }
  }
  return nullptr;
}

// A sibling is about to have the prompt.
bool Scheduler::waits_for_sibling(const Sequence& sequence) const {
  if (!may_fork(sequence) || fork_source(sequence)) return false;
  for (const Sequence* other = sequence.next_sibling; other != &sequence; other = other->next_sibling) {
    if (other->status == Sequence::Status::kRunning) return true;
  }
  return false;
}

bool Scheduler::fork(Sequence& sequence, const Sequence& source) {
  const int32_t num_prompt = sequence.num_prompt_tokens;
  while (num_running() >= config_.max_num_seqs) {
    wait_reason_ = WaitReason::kRows;
    if (!push_out_worse(sequence)) return false;
  }
  auto forked = blocks_.fork(source.row, num_prompt, num_watermark_blocks_);
  for (; !forked; forked = blocks_.fork(source.row, num_prompt, num_watermark_blocks_)) {
    wait_reason_ = WaitReason::kBlocks;
    if (!push_out_worse(sequence)) return false;
  }
  wait_reason_ = WaitReason::kNone;
  Batch& batch = newest().batch;
  if (forked->own_block >= 0) {
    batch.block_copies.push_back(forked->source_block);
    batch.block_copies.push_back(forked->own_block);
  }
  unlink_waiting(sequence);
  sequence.status = Sequence::Status::kRunning;
  sequence.is_forked = true;
  sequence.row = forked->row;
  sequence.num_published_blocks = std::min(source.num_published_blocks, num_prompt / config_.block_size);
  sequence.num_computed_tokens = num_prompt - 1;
  sequence.num_cached_tokens = source.num_cached_tokens;
  start_running(sequence);
  append_to_batch(sequence, 1);
  batch.slot_mapping[batch.num_tokens - 1] = -1;
  return true;
}

// Forks in forgotten batches wait again: their copies may not have been made, and their sources may change.
void Scheduler::take_back_forks() {
  for (auto it = running_.end(); it != running_.begin();) {
    Sequence& sequence = **--it;
    if (!sequence.is_forked || sequence.num_computed_tokens >= sequence.num_prompt_tokens) continue;
    it = running_.erase(it);
    release_row(sequence);
    sequence.num_computed_tokens = 0;
    sequence.num_published_blocks = 0;
    sequence.num_cached_tokens = -1;
    sequence.history->num_reached_tokens = 0;
    link_waiting(sequence);
  }
}

void Scheduler::unlink_sibling(Sequence& sequence) {
  Sequence* before = sequence.next_sibling;
  while (before->next_sibling != &sequence) before = before->next_sibling;
  before->next_sibling = before == sequence.next_sibling ? nullptr : sequence.next_sibling;
  sequence.next_sibling = nullptr;
}

// The ring holds unfinished sequences of one request, each once.
void Scheduler::check_siblings(const Sequence& sequence) const {
  if (!sequence.next_sibling) return;
  const Sequence* other = sequence.next_sibling;
  for (int32_t i = 1; other != &sequence; ++i, other = other->next_sibling) {
    QUIRE_CHECK(i < num_running() + num_waiting(),
                "sequence " << sequence.request_id << ": the ring is broken");
    QUIRE_CHECK(
        other->request_id == sequence.request_id && other->index != sequence.index &&
            other->num_prompt_tokens == sequence.num_prompt_tokens &&
            (other->status == Sequence::Status::kRunning || other->status == Sequence::Status::kWaiting),
        "sequence " << sequence.request_id << " and " << other->request_id << ", sequences " << sequence.index
                    << " and " << other->index);
  }
  QUIRE_CHECK(sequence.next_sibling != &sequence, "sequence " << sequence.request_id);
}

// Only the sequence itself holds the blocks that it writes from now on, or in batches in flight.
void Scheduler::check_written_blocks(const Sequence& sequence) const {
  int32_t position = sequence.num_computed_tokens;
  if (sequence.is_forked) position = std::max(position, sequence.num_prompt_tokens);
  const auto blocks = blocks_.blocks(sequence.row);
  for (size_t i = static_cast<size_t>(position / config_.block_size); i < blocks.size(); ++i) {
    QUIRE_CHECK(blocks_.pool().ref_count(blocks[i]) == 1,
                "sequence " << sequence.request_id << " writes block " << blocks[i] << " of "
                            << blocks_.pool().ref_count(blocks[i]) << " holders");
  }
}

}  // namespace quire
