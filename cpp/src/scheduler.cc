#include "quire/scheduler.h"

#include <algorithm>
#include <numeric>

#include "quire/error.h"

namespace quire {

Scheduler::Scheduler(const EngineConfig& config, uint64_t salt)
    : config_(config),
      root_(root_hash(salt)),
      blocks_(config.num_blocks, config.block_size, config.max_num_seqs, config.max_blocks_per_request()),
      masks_(config.max_num_seqs, config.vocab_size),
      num_watermark_blocks_(static_cast<int32_t>(config.watermark * static_cast<float>(config.num_blocks))) {
  in_flight_.resize(static_cast<size_t>(config.max_batches_in_flight));
  for (BatchInFlight& slot : in_flight_) allocate(slot);
  running_.reserve(static_cast<size_t>(config.max_num_seqs));
}

void Scheduler::allocate(BatchInFlight& slot) const {
  const int64_t max_tokens = config_.max_num_batched_tokens;
  const int64_t max_reqs = std::min(config_.max_num_seqs, config_.max_num_batched_tokens);
  Batch& batch = slot.batch;
  batch.allocate({1, max_tokens, max_reqs, max_reqs, max_tokens, 0});
  batch.block_tables = blocks_.block_tables();
  batch.block_table_stride = blocks_.stride();
  batch.num_block_table_rows = blocks_.num_rows();
  slot.requests.resize(static_cast<size_t>(max_reqs));
  slot.num_new_tokens.resize(static_cast<size_t>(max_reqs));
}

template <class Visit>
void Scheduler::for_each_entry(const RequestState& request, Visit visit) {
  for (int32_t i = 0, num_left = request.num_entries; num_left > 0 && i < num_in_flight_; ++i) {
    BatchInFlight& batch = in_flight_[(oldest_ + i) % config_.max_batches_in_flight];
    const auto begin = batch.requests.begin(), end = begin + batch.batch.num_reqs;
    const auto found = std::find(begin, end, &request);
    if (found == end) continue;
    visit(batch, static_cast<int32_t>(found - begin));
    --num_left;
  }
}

void Scheduler::add(RequestState& request, RequestState* sibling) {
  QUIRE_CHECK(request.status == RequestState::Status::kNew, "request " << request.request_id);
  if (config_.enable_prefix_caching) {
    request.block_hashes.reserve(static_cast<size_t>(request.max_total_tokens / config_.block_size));
    if (sibling) request.block_hashes = sibling->block_hashes;
    extend_hashes(request, request.num_tokens() / config_.block_size);
  }
  if (sibling) {
    RequestState* after = sibling->next_sibling ? sibling->next_sibling : sibling;
    sibling->next_sibling = &request;
    request.next_sibling = after;
  }
  request.arrival = num_added_++;
  link_waiting(request);
}

void Scheduler::remove(RequestState& request) {
  finish(request);
  drop_finished();
}

const Batch& Scheduler::schedule(int64_t now_ns) {
  now_ns_ = now_ns;
  QUIRE_CHECK(num_in_flight_ < config_.max_batches_in_flight, num_in_flight_ << " batches are in flight");
  newest_ = (oldest_ + num_in_flight_) % config_.max_batches_in_flight;
  newest().scheduled_ns = now_ns;
  Batch& batch = newest().batch;
  batch.clear();
  fill_batch(batch);
  blocks_.take_updates(batch.block_table_updates);
  const auto num_updates = static_cast<int32_t>(batch.block_table_updates.size() / 2);
  batch.header = {batch.num_reqs, batch.num_tokens, batch.num_sampled, num_updates};
  if (batch.num_tokens > 0) ++num_in_flight_;
  return batch;
}

void Scheduler::fill_batch(const Batch& batch) {
  const uint64_t num_preemptions_before = num_preemptions_;
  wait_reason_ = WaitReason::kNone;
  const bool may_overtake = waits_for_worse();
  for (size_t i = 0; i < running_.size() && batch.num_tokens < config_.max_num_batched_tokens; ++i) {
    if (may_overtake && wait_reason_ == WaitReason::kNone) {
      RequestState* const better = first_waiting();
      if (better && better->priority < running_[i]->priority) {
        if (admit(*better)) continue;  // at this place; who was here is the next one, or had to go
        if (i >= running_.size()) break;
      }
    }
    RequestState& request = *running_[i];
    if (i + kPrefetchDistance < running_.size()) prefetch(running_[i + kPrefetchDistance], kNumHotBytes);
    // Its last id is on its way: it needs no KV.
    if (request.num_tokens_ahead() >= request.max_total_tokens) continue;
    if (request.waits_for_ids && request.num_pending_ids > 0) continue;
    const int32_t budget = config_.max_num_batched_tokens - batch.num_tokens;
    const int32_t num_left = request.num_tokens_ahead() - request.num_computed_ahead();
    if (num_left > budget && !config_.enable_chunked_prefill) break;
    const int32_t num_now = std::min(num_left, budget);
    while (!blocks_.extend(request.row, request.num_computed_ahead() + num_now)) {
      // Requests after `request` are not in this batch yet.
      RequestState& victim = *running_.back();
      preempt(victim);
      wait_reason_ = WaitReason::kBlocks;
      if (&victim == &request) break;
    }
    if (request.status == RequestState::Status::kRunning) append_to_batch(request, num_now);
  }

  // Blocks given back in this step are for those that run, or were admitted for them; admitting more at once
  // would only preempt again.
  while (wait_reason_ == WaitReason::kNone && num_preemptions_ == num_preemptions_before &&
         batch.num_tokens < config_.max_num_batched_tokens) {
    RequestState* const request = first_waiting();
    if (!request || !admit(*request)) break;
  }
  if (first_waiting()) count_wait(batch);
}

void Scheduler::forget_batches() {
  for (; num_in_flight_ > 0; --num_in_flight_, oldest_ = (oldest_ + 1) % config_.max_batches_in_flight) {
    const BatchInFlight& forgotten = in_flight_[oldest_];
    for (int32_t i = 0; i < forgotten.batch.num_reqs; ++i) {
      RequestState* request = forgotten.requests[i];
      if (request) request->num_scheduled_tokens = request->num_pending_ids = request->num_entries = 0;
    }
  }
  take_back_forks();
  for (RequestState* request : running_) request->has_written_tables = false;
  masks_.forget();
  blocks_.repeat_updates();
}

bool Scheduler::admit(RequestState& request) {
  wait_reason_ = WaitReason::kBlocks;  // unless it is admitted
  // Preempted, and its last id is on its way, into a row that it no longer has. It may even end with it.
  if (request.num_pending_ids > 0) return false;
  const int32_t num_tokens = request.num_tokens();
  const int32_t budget = config_.max_num_batched_tokens - newest().batch.num_tokens;
  if (const RequestState* source = fork_source(request)) return fork(request, *source);
  const std::span<const BlockHash> hashes = findable_hashes(request);
  if (!config_.enable_chunked_prefill) {
    const int32_t num_found = blocks_.num_cached_blocks(hashes) * config_.block_size;
    if (num_tokens - num_found > budget) {
      wait_reason_ = WaitReason::kTokenBudget;
      return false;
    }
  }
  const auto opened = open_row(request, hashes);
  if (!opened) return false;
  wait_reason_ = WaitReason::kNone;

  unlink_waiting(request);
  request.status = RequestState::Status::kRunning;
  request.row = opened->row;
  request.num_published_blocks = opened->num_cached_blocks;
  request.num_computed_tokens = opened->num_cached_blocks * config_.block_size;
  if (request.num_cached_tokens < 0) {
    request.num_cached_tokens = request.num_computed_tokens;
    if (config_.enable_prefix_caching) {
      prefix_cache_queries_ += static_cast<uint64_t>(num_tokens);
      prefix_cache_hits_ += static_cast<uint64_t>(request.num_computed_tokens);
    }
  }
  start_running(request);
  append_to_batch(request, std::min(num_tokens - request.num_computed_tokens, budget));
  return true;
}

void Scheduler::preempt(RequestState& request) {
  QUIRE_CHECK(&request == running_.back(), "request " << request.request_id);
  running_.pop_back();
  release_row(request);
  // Ids that batches in flight sample for it stay good; the KV that they compute for it is lost with the
  // blocks.
  for_each_entry(request, [](BatchInFlight& batch, int32_t idx) { batch.num_new_tokens[idx] = 0; });
  request.history->leave_at(request.num_computed_ahead());
  ++request.history->num_preemptions;
  request.num_scheduled_tokens = 0;
  request.num_computed_tokens = 0;
  request.num_published_blocks = 0;
  if (config_.enable_prefix_caching) extend_hashes(request, request.num_tokens() / config_.block_size);
  link_waiting(request);
  ++num_preemptions_;
}

void Scheduler::release_row(RequestState& request) {
  blocks_.close(request.row);
  request.row = -1;
  request.is_forked = false;
  request.has_written_tables = false;
}

void Scheduler::append_to_batch(RequestState& request, int32_t num_tokens) {
  BatchInFlight& slot = newest();
  Batch& batch = slot.batch;
  const int32_t req_idx = batch.num_reqs++;
  const int32_t first_token = batch.num_tokens;
  const int32_t begin = request.num_computed_ahead();
  const int32_t end = begin + num_tokens;
  request.num_scheduled_tokens += num_tokens;
  ++request.num_entries;
  slot.requests[req_idx] = &request;
  slot.num_new_tokens[req_idx] = num_tokens;

  const int32_t* token_ids = request.token_ids.data();
  const int32_t num_known = request.num_tokens();
  for (int32_t position = begin, i = first_token; position < end; ++position, ++i) {
    batch.token_ids[i] = position < num_known ? token_ids[position] : ~request.row;
    batch.positions[i] = position;
    batch.slot_mapping[i] = blocks_.slot(request.row, position);
  }
  batch.num_tokens += num_tokens;
  batch.request_ids[req_idx] = request.request_id;
  batch.sequence_index[req_idx] = request.index;
  batch.query_start_loc[req_idx + 1] = batch.num_tokens;
  batch.seq_lens[req_idx] = end;
  batch.block_table_rows[req_idx] = request.row;
  batch.max_query_len = std::max(batch.max_query_len, num_tokens);
  batch.max_seq_len = std::max(batch.max_seq_len, end);
  if (request.num_prompt_logprobs > 0) append_prompt_rows(request, begin, end);
  const bool is_sampled = end == request.num_tokens_ahead();
  batch.sample_offsets[req_idx + 1] = batch.num_sampled + is_sampled;
  if (!is_sampled) return;

  const int32_t sample_idx = batch.num_sampled++;
  const int32_t output_idx = request.num_tokens_ahead() - request.num_prompt_tokens;
  ++request.num_pending_ids;
  batch.sample_token_idx[sample_idx] = batch.num_tokens - 1;
  batch.sample_rows[sample_idx] = request.row;
  batch.temperature[sample_idx] = request.temperature;
  batch.top_p[sample_idx] = request.top_p;
  batch.top_k[sample_idx] = request.top_k;
  batch.seed[sample_idx] = request.seed;
  batch.output_idx[sample_idx] = output_idx;
  batch.mask_rows[sample_idx] = -1;
  batch.num_logprobs[sample_idx] = request.num_logprobs;
  batch.has_logprobs |= request.num_logprobs > 0;
  if (request.edits || batch.has_edits) append_edits(batch, request, masks_);
}

// Asks for the logits of the tokens in [begin, end) that predict another token of the prompt. The request's
// entry is the batch's last.
void Scheduler::append_prompt_rows(const RequestState& request, int32_t begin, int32_t end) {
  Batch& batch = newest().batch;
  const int32_t first_token = batch.num_tokens - (end - begin);
  end = std::min(end, request.num_prompt_tokens - 1);
  for (int32_t place = std::max(begin, request.num_known_prompt_logprobs); place < end; ++place) {
    const int32_t row = batch.num_prompt_rows++;
    batch.prompt_token_idx[row] = first_token + place - begin;
    batch.prompt_req_idx[row] = batch.num_reqs - 1;
    batch.prompt_next_ids[row] = request.token_ids[place + 1];
    batch.prompt_num_logprobs[row] = request.num_prompt_logprobs;
  }
}

void Scheduler::complete(int32_t batch_idx, bool is_sampled) {
  BatchInFlight& ending = in_flight_[oldest_];
  RequestState& request = *ending.requests[batch_idx];
  const int32_t num_new_tokens = ending.num_new_tokens[batch_idx];
  ending.requests[batch_idx] = nullptr;
  --request.num_entries;
  request.num_pending_ids -= is_sampled;
  request.num_scheduled_tokens -= num_new_tokens;
  request.num_computed_tokens += num_new_tokens;
  if (!config_.enable_prefix_caching) return;
  const int32_t size = config_.block_size;
  if (request.num_computed_tokens < (request.num_published_blocks + 1) * size) return;
  const int32_t num_full = request.num_computed_tokens / size;
  extend_hashes(request, num_full);
  for (int32_t& i = request.num_published_blocks; i < num_full; ++i) {
    blocks_.publish(request.row, i, request.block_hashes[i]);
  }
}

void Scheduler::extend_hashes(RequestState& request, int32_t num_blocks) {
  const auto size = static_cast<size_t>(config_.block_size);
  for (size_t i = request.block_hashes.size(); i < static_cast<size_t>(num_blocks); ++i) {
    const BlockHash parent = i > 0                        ? request.block_hashes[i - 1]
                             : request.cache_salt.empty() ? root_
                                                          : salted_root(root_, request.cache_salt);
    request.block_hashes.push_back(hash_block(parent, std::span(request.token_ids).subspan(i * size, size)));
  }
}

void Scheduler::finish(RequestState& request) {
  for_each_entry(request, [](BatchInFlight& batch, int32_t idx) { batch.requests[idx] = nullptr; });
  request.num_entries = 0;
  if (request.status == RequestState::Status::kWaiting) {
    unlink_waiting(request);
  } else {
    QUIRE_CHECK(request.status == RequestState::Status::kRunning, "request " << request.request_id);
    release_row(request);
    has_finished_ = true;
  }
  if (request.next_sibling) unlink_sibling(request);
  request.status = RequestState::Status::kFinished;
}

void Scheduler::end_step() {
  QUIRE_CHECK(num_in_flight_ > 0, "no batch is in flight");
  oldest_ = (oldest_ + 1) % config_.max_batches_in_flight;
  --num_in_flight_;
  drop_finished();
}

void Scheduler::drop_finished() {
  if (!has_finished_) return;
  std::erase_if(running_, [](const RequestState* r) { return r->status == RequestState::Status::kFinished; });
  has_finished_ = false;
}

}  // namespace quire
