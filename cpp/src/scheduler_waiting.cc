// Scheduler: the waiting queue, and what its head may take from running requests of worse priority.
#include <algorithm>

#include "quire/error.h"
#include "quire/scheduler.h"

namespace quire {

void Scheduler::link_waiting(RequestState& request) {
  // New requests belong to the end, or near it; preempted ones, which came before all that wait with their
  // priority, to the head, or near it.
  RequestState* after = nullptr;
  if (request.history->num_preemptions == 0) {
    after = waiting_tail_;
    while (after && request.goes_before(*after)) after = after->previous;
  } else {
    for (RequestState* next = waiting_head_; next && next->goes_before(request); next = next->next)
      after = next;
  }
  RequestState* before = after ? after->next : waiting_head_;
  request.next = before;
  request.previous = after;
  (after ? after->next : waiting_head_) = &request;
  (before ? before->previous : waiting_tail_) = &request;
  request.status = RequestState::Status::kWaiting;
  for (size_t i = 0; i < kNumWaitReasons; ++i) request.history->waits[i] -= num_waits_[i];
  ++num_waiting_;
}

void Scheduler::unlink_waiting(RequestState& request) {
  (request.previous ? request.previous->next : waiting_head_) = request.next;
  (request.next ? request.next->previous : waiting_tail_) = request.previous;
  request.previous = request.next = nullptr;
  request.history->waits = waits(request);
  --num_waiting_;
  if (refused_ == &request) refused_ = nullptr;
}

std::array<uint64_t, kNumWaitReasons> Scheduler::waits(const RequestState& request) const {
  auto waits = request.history->waits;
  if (request.status != RequestState::Status::kWaiting) return waits;
  for (size_t i = 0; i < kNumWaitReasons; ++i) waits[i] += num_waits_[i];
  return waits;
}

// Requests wait after this step.
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

RequestState* Scheduler::first_waiting() const {
  RequestState* request = waiting_head_;
  while (request && waits_for_sibling(*request)) request = request->next;
  return request;
}

bool Scheduler::waits_for_worse() const {
  const RequestState* request = first_waiting();
  return request && !running_.empty() && request->priority < running_.back()->priority;
}

bool Scheduler::was_refused(const RequestState& request) const {
  return refused_ == &request && blocks_.pool().num_free() <= refused_num_free_ && !running_.empty();
}

// Running requests of worse priority come after it, so they are not in this batch yet.
bool Scheduler::push_out_worse(const RequestState& request) {
  if (running_.empty() || running_.back()->priority <= request.priority) return false;
  preempt(*running_.back());
  return true;
}

// The request's row is open, and num_computed_tokens says what is there.
void Scheduler::start_running(RequestState& request) {
  request.history->enter_at(request.num_computed_tokens, now_ns_);
  const auto by_order = [](const RequestState* a, const RequestState* b) { return a->goes_before(*b); };
  running_.insert(std::upper_bound(running_.begin(), running_.end(), &request, by_order), &request);
}

// At least one token is computed, else there would be nothing to sample from.
std::span<const BlockHash> Scheduler::findable_hashes(const RequestState& request) const {
  if (request.needs_prompt_logprobs()) return {};  // tokens found in the cache have no logits
  const std::span<const BlockHash> hashes(request.block_hashes);
  const auto num_blocks = static_cast<size_t>((request.num_tokens() - 1) / config_.block_size);
  return hashes.first(std::min(hashes.size(), num_blocks));
}

std::optional<BlockManager::Opened> Scheduler::open_row(const RequestState& request,
                                                        std::span<const BlockHash> hashes) {
  const bool may_preempt = may_preempt_for(request, hashes);
  while (true) {
    const bool is_alone = running_.empty();
    if (num_running() >= config_.max_num_seqs) {
      wait_reason_ = WaitReason::kRows;
    } else {
      wait_reason_ = WaitReason::kBlocks;
      if (!was_refused(request)) {
        const auto opened = blocks_.open(hashes, request.num_tokens(), is_alone ? 0 : num_watermark_blocks_);
        if (opened) return opened;
        QUIRE_CHECK(!is_alone, request.num_tokens() << " tokens do not fit an empty pool of "
                                                    << config_.num_blocks << " blocks");
        refused_ = &request;
        refused_num_free_ = blocks_.pool().num_free();
      }
    }
    if (!may_preempt || !push_out_worse(request)) return std::nullopt;
  }
}

// Whether running requests of worse priority hold what is missing. A block that several of them share counts
// for each, so it may turn out that they do not.
bool Scheduler::may_preempt_for(const RequestState& request, std::span<const BlockHash> hashes) const {
  if (running_.empty() || running_.back()->priority <= request.priority) return false;
  int32_t num_missing = (request.num_tokens() + config_.block_size - 1) / config_.block_size +
                        num_watermark_blocks_ - blocks_.num_cached_blocks(hashes) - blocks_.pool().num_free();
  for (size_t i = running_.size(); i-- > 0 && running_[i]->priority > request.priority;) {
    num_missing -= static_cast<int32_t>(blocks_.blocks(running_[i]->row).size());
    if (i == 0) num_missing -= num_watermark_blocks_;
  }
  return num_missing <= 0;
}

int32_t Scheduler::num_prompt_tokens_left(const RequestState& request) const {
  if (request.num_tokens_ahead() > request.num_prompt_tokens) return 0;
  if (request.status == RequestState::Status::kRunning) {
    return request.num_prompt_tokens - request.num_computed_ahead();
  }
  // What others compute now may be found when it is done.
  const int32_t num_found = blocks_.num_cached_blocks(findable_hashes(request)) * config_.block_size;
  const int32_t num_on_its_way =
      config_.enable_prefix_caching ? num_in_flight_ * config_.max_num_batched_tokens : 0;
  return std::max(request.num_prompt_tokens - num_found - num_on_its_way, 0);
}

}  // namespace quire
