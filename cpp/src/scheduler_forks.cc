// Scheduler: sequences of one request that share its prompt.
#include <algorithm>

#include "quire/error.h"
#include "quire/scheduler.h"

namespace quire {

// Only before it is first admitted: later it has tokens of its own, and is recomputed as any request.
bool Scheduler::may_fork(const RequestState& request) const {
  return request.next_sibling && request.num_cached_tokens < 0;
}

const RequestState* Scheduler::fork_source(const RequestState& request) const {
  if (!may_fork(request)) return nullptr;
  for (const RequestState* other = request.next_sibling; other != &request; other = other->next_sibling) {
    const bool is_running = other->status == RequestState::Status::kRunning;
    if (is_running && other->num_computed_tokens >= other->num_prompt_tokens) return other;
  }
  return nullptr;
}

// A sibling is about to have the prompt.
bool Scheduler::waits_for_sibling(const RequestState& request) const {
  if (!may_fork(request) || fork_source(request)) return false;
  for (const RequestState* other = request.next_sibling; other != &request; other = other->next_sibling) {
    if (other->status == RequestState::Status::kRunning) return true;
  }
  return false;
}

bool Scheduler::fork(RequestState& request, const RequestState& source) {
  const int32_t num_prompt = request.num_prompt_tokens;
  while (num_running() >= config_.max_num_seqs) {
    wait_reason_ = WaitReason::kRows;
    if (!push_out_worse(request)) return false;
  }
  auto forked = blocks_.fork(source.row, num_prompt, num_watermark_blocks_);
  for (; !forked; forked = blocks_.fork(source.row, num_prompt, num_watermark_blocks_)) {
    wait_reason_ = WaitReason::kBlocks;
    if (!push_out_worse(request)) return false;
  }
  wait_reason_ = WaitReason::kNone;
  Batch& batch = newest().batch;
  if (forked->own_block >= 0) {
    batch.block_copies.push_back(forked->source_block);
    batch.block_copies.push_back(forked->own_block);
  }
  unlink_waiting(request);
  request.status = RequestState::Status::kRunning;
  request.is_forked = true;
  request.row = forked->row;
  request.num_published_blocks = std::min(source.num_published_blocks, num_prompt / config_.block_size);
  request.num_computed_tokens = num_prompt - 1;
  request.num_cached_tokens = source.num_cached_tokens;
  start_running(request);
  append_to_batch(request, 1);
  batch.slot_mapping[batch.num_tokens - 1] = -1;
  return true;
}

// Forks in forgotten batches wait again: their copies may not have been made, and their sources may change.
void Scheduler::take_back_forks() {
  for (auto it = running_.end(); it != running_.begin();) {
    RequestState& request = **--it;
    if (!request.is_forked || request.num_computed_tokens >= request.num_prompt_tokens) continue;
    it = running_.erase(it);
    release_row(request);
    request.num_computed_tokens = 0;
    request.num_published_blocks = 0;
    request.num_cached_tokens = -1;
    request.history->num_reached_tokens = 0;
    link_waiting(request);
  }
}

void Scheduler::unlink_sibling(RequestState& request) {
  RequestState* before = request.next_sibling;
  while (before->next_sibling != &request) before = before->next_sibling;
  before->next_sibling = before == request.next_sibling ? nullptr : request.next_sibling;
  request.next_sibling = nullptr;
}

// The ring holds unfinished sequences of one request, each once.
void Scheduler::check_siblings(const RequestState& request) const {
  if (!request.next_sibling) return;
  const RequestState* other = request.next_sibling;
  for (int32_t i = 1; other != &request; ++i, other = other->next_sibling) {
    QUIRE_CHECK(i < num_running() + num_waiting(),
                "request " << request.request_id << ": the ring is broken");
    QUIRE_CHECK(other->request_id == request.request_id && other->index != request.index &&
                    other->num_prompt_tokens == request.num_prompt_tokens &&
                    (other->status == RequestState::Status::kRunning ||
                     other->status == RequestState::Status::kWaiting),
                "request " << request.request_id << " and " << other->request_id << ", sequences "
                           << request.index << " and " << other->index);
  }
  QUIRE_CHECK(request.next_sibling != &request, "request " << request.request_id);
}

// Only the request itself holds the blocks that it writes from now on, or in batches in flight.
void Scheduler::check_written_blocks(const RequestState& request) const {
  int32_t position = request.num_computed_tokens;
  if (request.is_forked) position = std::max(position, request.num_prompt_tokens);
  const auto blocks = blocks_.blocks(request.row);
  for (size_t i = static_cast<size_t>(position / config_.block_size); i < blocks.size(); ++i) {
    QUIRE_CHECK(blocks_.pool().ref_count(blocks[i]) == 1,
                "request " << request.request_id << " writes block " << blocks[i] << " of "
                           << blocks_.pool().ref_count(blocks[i]) << " holders");
  }
}

}  // namespace quire
