// Scheduler: the waiting queue, and what its head may take from running sequences of worse priority.
#include <algorithm>

#include "quire/error.h"
#include "quire/scheduler.h"

namespace quire {

void Scheduler::link_waiting(Sequence& sequence) {
  // New sequences belong to the end, or near it; preempted ones, which came before all that wait with their
  // priority, to the head, or near it.
  Sequence* after = nullptr;
  if (sequence.history->num_preemptions == 0) {
    after = waiting_tail_;
    while (after && sequence.goes_before(*after)) after = after->previous;
  } else {
    for (Sequence* next = waiting_head_; next && next->goes_before(sequence); next = next->next) after = next;
  }
  Sequence* before = after ? after->next : waiting_head_;
  sequence.next = before;
  sequence.previous = after;
  (after ? after->next : waiting_head_) = &sequence;
  (before ? before->previous : waiting_tail_) = &sequence;
  sequence.status = Sequence::Status::kWaiting;
  for (size_t i = 0; i < kNumWaitReasons; ++i) sequence.history->waits[i] -= num_waits_[i];
  ++num_waiting_;
}

void Scheduler::unlink_waiting(Sequence& sequence) {
  (sequence.previous ? sequence.previous->next : waiting_head_) = sequence.next;
  (sequence.next ? sequence.next->previous : waiting_tail_) = sequence.previous;
  sequence.previous = sequence.next = nullptr;
  sequence.history->waits = waits(sequence);
  --num_waiting_;
  if (refused_ == &sequence) refused_ = nullptr;
}

std::array<uint64_t, kNumWaitReasons> Scheduler::waits(const Sequence& sequence) const {
  auto waits = sequence.history->waits;
  if (sequence.status != Sequence::Status::kWaiting) return waits;
  for (size_t i = 0; i < kNumWaitReasons; ++i) waits[i] += num_waits_[i];
  return waits;
}

// Sequences wait after this step.
void Scheduler::count_wait(const Batch& batch) {
  WaitReason reason = wait_reason_;
  if (num_running() >= config_.max_num_seqs) {
    reason = WaitReason::kRows;
  } else if (reason == WaitReason::kNone) {
    // A head that was not refused was not looked at: for want of tokens, or because others were preempted.
    const bool is_full = batch.num_tokens >= config_.max_num_batched_tokens;
    reason = is_full ? WaitReason::kTokenBudget : WaitReason::kBlocks;
  }
  ++num_waits_[static_cast<size_t>(reason)];
}

Sequence* Scheduler::first_waiting() const {
  Sequence* sequence = waiting_head_;
  while (sequence && waits_for_sibling(*sequence)) sequence = sequence->next;
  return sequence;
}

bool Scheduler::waits_for_worse() const {
  const Sequence* sequence = first_waiting();
  return sequence && !running_.empty() && sequence->priority < running_.back()->priority;
}

bool Scheduler::was_refused(const Sequence& sequence) const {
  return refused_ == &sequence && blocks_.pool().num_free() <= refused_num_free_ && !running_.empty();
}

// Running sequences of worse priority come after it, so they are not in this batch yet.
bool Scheduler::push_out_worse(const Sequence& sequence) {
  if (running_.empty() || running_.back()->priority <= sequence.priority) return false;
  preempt(*running_.back());
  return true;
}

// The sequence's row is open, and num_computed_tokens says what is there.
void Scheduler::start_running(Sequence& sequence) {
  sequence.history->enter_at(sequence.num_computed_tokens, now_ns_);
  const auto by_order = [](const Sequence* a, const Sequence* b) { return a->goes_before(*b); };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &sequence, by_order), &sequence);
}

// At least one token is computed, else there would be nothing to sample from.
std::span<const BlockHash> Scheduler::findable_hashes(const Sequence& sequence) const {
  if (sequence.needs_prompt_logprobs()) return {};  // tokens found in the cache have no logits
  const std::span<const BlockHash> hashes(sequence.block_hashes);
  const auto num_blocks = static_cast<size_t>((sequence.num_tokens() - 1) / config_.block_size);
  return hashes.first(std::min(hashes.size(), num_blocks));
}

// How many tokens a sequence gets room for when it is admitted: all that it has, so that it does not have to
// go again half-way. With a window it gives blocks back on the way, and gets room for its first step.
int32_t Scheduler::num_tokens_at_once(const Sequence& sequence, std::span<const BlockHash> hashes) const {
  if (config_.window == 0) return sequence.num_tokens();
  const int32_t budget = config_.max_num_batched_tokens - in_flight_[newest_].batch.num_tokens;
  const int32_t num_found = blocks_.num_cached_blocks(hashes) * config_.block_size;
  return std::min(sequence.num_tokens(), num_found + budget);
}

std::optional<BlockManager::Opened> Scheduler::open_row(const Sequence& sequence,
                                                        std::span<const BlockHash> hashes) {
  const bool may_preempt = may_preempt_for(sequence, hashes);
  const int32_t num_tokens = num_tokens_at_once(sequence, hashes);
  while (true) {
    const bool is_alone = running_.empty();
    if (num_running() >= config_.max_num_seqs) {
      wait_reason_ = WaitReason::kRows;
    } else {
      wait_reason_ = WaitReason::kBlocks;
      if (!was_refused(sequence)) {
        const auto opened = blocks_.open(hashes, num_tokens, is_alone ? 0 : num_watermark_blocks_);
        if (opened) return opened;
        QUIRE_CHECK(!is_alone,
                    num_tokens << " tokens do not fit an empty pool of " << config_.num_blocks << " blocks");
        refused_ = &sequence;
        refused_num_free_ = blocks_.pool().num_free();
      }
    }
    if (!may_preempt || !push_out_worse(sequence)) return std::nullopt;
  }
}

// Whether running sequences of worse priority hold what is missing. A block that several of them share counts
// for each, so it may turn out that they do not.
bool Scheduler::may_preempt_for(const Sequence& sequence, std::span<const BlockHash> hashes) const {
  if (running_.empty() || running_.back()->priority <= sequence.priority) return false;
  int32_t num_missing = (num_tokens_at_once(sequence, hashes) + config_.block_size - 1) / config_.block_size +
                        num_watermark_blocks_ - blocks_.num_cached_blocks(hashes) - blocks_.pool().num_free();
  for (size_t i = running_.size(); i-- > 0 && running_[i]->priority > sequence.priority;) {
    num_missing -= static_cast<int32_t>(blocks_.blocks(running_[i]->row).size());
    if (i == 0) num_missing -= num_watermark_blocks_;
  }
  return num_missing <= 0;
}

int32_t Scheduler::num_prompt_tokens_left(const Sequence& sequence) const {
  if (sequence.num_tokens_ahead() > sequence.num_prompt_tokens) return 0;
  if (sequence.status == Sequence::Status::kRunning) {
    return sequence.num_prompt_tokens - sequence.num_computed_ahead();
  }
  // What others compute now may be found when it is done.
  const int32_t num_found = blocks_.num_cached_blocks(findable_hashes(sequence)) * config_.block_size;
  const int32_t num_on_its_way =
      config_.enable_prefix_caching ? num_in_flight_ * config_.max_num_batched_tokens : 0;
  return std::max(sequence.num_prompt_tokens - num_found - num_on_its_way, 0);
}

}  // namespace quire
