#include "quire/scheduler.h"

#include <algorithm>
#include <numeric>

#include "quire/error.h"

namespace quire {

Scheduler::Scheduler(const EngineConfig& config, uint64_t salt)
    : config_(config),
      root_(root_hash(salt)),
      blocks_(config.num_blocks, config.block_size, config.max_num_seqs, config.max_blocks_per_request()),
      num_watermark_blocks_(static_cast<int32_t>(config.watermark * static_cast<float>(config.num_blocks))) {
  const auto max_tokens = static_cast<size_t>(config.max_num_batched_tokens);
  const auto max_reqs = static_cast<size_t>(std::min(config.max_num_seqs, config.max_num_batched_tokens));
  batch_.token_ids.resize(max_tokens);
  batch_.positions.resize(max_tokens);
  batch_.slot_mapping.resize(max_tokens);
  batch_.request_ids.resize(max_reqs);
  batch_.query_start_loc.resize(max_reqs + 1);
  batch_.seq_lens.resize(max_reqs);
  batch_.block_table_rows.resize(max_reqs);
  batch_.block_tables = blocks_.block_tables();
  batch_.block_table_stride = blocks_.stride();
  batch_.num_block_table_rows = blocks_.num_rows();
  batch_.sample_token_idx.resize(max_reqs);
  batch_.sample_req_idx.resize(max_reqs);
  batch_.temperature.resize(max_reqs);
  batch_.top_p.resize(max_reqs);
  batch_.top_k.resize(max_reqs);
  batch_.seed.resize(max_reqs);
  batch_.output_idx.resize(max_reqs);
  batch_.mask_offsets.resize(max_reqs + 1);
  batch_requests_.resize(max_reqs);
  running_.reserve(static_cast<size_t>(config.max_num_seqs));
}

void Scheduler::add(RequestState& request) {
  QUIRE_CHECK(request.status == RequestState::Status::kNew, "request " << request.request_id);
  if (config_.enable_prefix_caching) {
    request.block_hashes.reserve(static_cast<size_t>(request.max_total_tokens / config_.block_size));
    extend_hashes(request, request.num_tokens() / config_.block_size);
  }
  num_mask_ids_ += request.mask_ids.size();
  link_waiting(request, nullptr);
}

void Scheduler::remove(RequestState& request) {
  if (request.batch_idx >= 0) batch_requests_[request.batch_idx] = nullptr;
  if (request.status == RequestState::Status::kWaiting) {
    unlink_waiting(request);
  } else {
    QUIRE_CHECK(request.status == RequestState::Status::kRunning, "request " << request.request_id);
    release_row(request);
    running_.erase(std::find(running_.begin(), running_.end(), &request));
  }
  num_mask_ids_ -= request.mask_ids.size();
  request.status = RequestState::Status::kFinished;
}

const Batch& Scheduler::schedule() {
  for (int32_t i = 0; is_batch_out_ && i < batch_.num_reqs; ++i) {
    if (batch_requests_[i]) batch_requests_[i]->batch_idx = -1;
  }
  is_batch_out_ = true;
  if (batch_.mask_ids.size() < num_mask_ids_) batch_.mask_ids.resize(2 * num_mask_ids_);
  batch_.num_reqs = batch_.num_tokens = batch_.num_sampled = 0;
  batch_.max_query_len = batch_.max_seq_len = 0;
  batch_.query_start_loc[0] = batch_.mask_offsets[0] = 0;

  const uint64_t num_preemptions_before = num_preemptions_;
  for (size_t i = 0; i < running_.size() && batch_.num_tokens < config_.max_num_batched_tokens; ++i) {
    RequestState& request = *running_[i];
    const int32_t budget = config_.max_num_batched_tokens - batch_.num_tokens;
    const int32_t num_left = request.num_tokens() - request.num_computed_tokens;
    if (num_left > budget && !config_.enable_chunked_prefill) break;
    const int32_t num_now = std::min(num_left, budget);
    while (!blocks_.extend(request.row, request.num_computed_tokens + num_now)) {
      // Everyone behind `request` is admitted later and not in the batch yet.
      RequestState& victim = *running_.back();
      preempt(victim);
      if (&victim == &request) break;
    }
    if (request.status == RequestState::Status::kRunning) append_to_batch(request, num_now);
  }

  // Blocks given back in this step are for those that run; admitting at once would only preempt again.
  if (num_preemptions_ != num_preemptions_before) return batch_;
  while (waiting_head_ && batch_.num_tokens < config_.max_num_batched_tokens &&
         num_running() < config_.max_num_seqs && admit(*waiting_head_)) {
  }
  return batch_;
}

bool Scheduler::admit(RequestState& request) {
  const int32_t num_tokens = request.num_tokens();
  const int32_t budget = config_.max_num_batched_tokens - batch_.num_tokens;
  const bool is_alone = running_.empty();
  if (&request == refused_ && blocks_.pool().num_free() <= refused_num_free_ && !is_alone) return false;

  // At least one token is computed, else there would be nothing to sample from.
  std::span<const BlockHash> hashes(request.block_hashes);
  hashes = hashes.first(std::min(hashes.size(), static_cast<size_t>((num_tokens - 1) / config_.block_size)));
  if (!config_.enable_chunked_prefill) {
    const int32_t num_found = blocks_.num_cached_blocks(hashes) * config_.block_size;
    if (num_tokens - num_found > budget) return false;
  }
  const auto opened = blocks_.open(hashes, num_tokens, is_alone ? 0 : num_watermark_blocks_);
  if (!opened) {
    QUIRE_CHECK(!is_alone,
                num_tokens << " tokens do not fit an empty pool of " << config_.num_blocks << " blocks");
    refused_ = &request;
    refused_num_free_ = blocks_.pool().num_free();
    return false;
  }

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
  running_.push_back(&request);
  append_to_batch(request, std::min(num_tokens - request.num_computed_tokens, budget));
  return true;
}

void Scheduler::preempt(RequestState& request) {
  QUIRE_CHECK(&request == running_.back(), "request " << request.request_id);
  running_.pop_back();
  release_row(request);
  request.num_computed_tokens = 0;
  request.num_published_blocks = 0;
  if (config_.enable_prefix_caching) extend_hashes(request, request.num_tokens() / config_.block_size);
  link_waiting(request, waiting_head_);
  ++num_preemptions_;
}

void Scheduler::release_row(RequestState& request) {
  blocks_.close(request.row);
  request.row = -1;
}

void Scheduler::append_to_batch(RequestState& request, int32_t num_tokens) {
  const int32_t req_idx = batch_.num_reqs++;
  const int32_t first_token = batch_.num_tokens;
  const int32_t begin = request.num_computed_tokens;
  const int32_t end = begin + num_tokens;
  request.num_scheduled_tokens = num_tokens;
  request.batch_idx = req_idx;
  batch_requests_[req_idx] = &request;

  const int32_t* token_ids = request.token_ids.data();
  for (int32_t position = begin, i = first_token; position < end; ++position, ++i) {
    batch_.token_ids[i] = token_ids[position];
    batch_.positions[i] = position;
    batch_.slot_mapping[i] = blocks_.slot(request.row, position);
  }
  batch_.num_tokens += num_tokens;
  batch_.request_ids[req_idx] = request.request_id;
  batch_.query_start_loc[req_idx + 1] = batch_.num_tokens;
  batch_.seq_lens[req_idx] = end;
  batch_.block_table_rows[req_idx] = request.row;
  batch_.max_query_len = std::max(batch_.max_query_len, num_tokens);
  batch_.max_seq_len = std::max(batch_.max_seq_len, end);

  if (end < request.num_tokens()) return;
  const int32_t sample_idx = batch_.num_sampled++;
  const int32_t output_idx = request.num_output_tokens();
  batch_.sample_token_idx[sample_idx] = batch_.num_tokens - 1;
  batch_.sample_req_idx[sample_idx] = req_idx;
  batch_.temperature[sample_idx] = request.temperature;
  batch_.top_p[sample_idx] = request.top_p;
  batch_.top_k[sample_idx] = request.top_k;
  batch_.seed[sample_idx] = request.seed;
  batch_.output_idx[sample_idx] = output_idx;
  int32_t mask_end = batch_.mask_offsets[sample_idx];
  if (output_idx < request.min_tokens) {
    std::copy(request.mask_ids.begin(), request.mask_ids.end(), batch_.mask_ids.begin() + mask_end);
    mask_end += static_cast<int32_t>(request.mask_ids.size());
  }
  batch_.mask_offsets[sample_idx + 1] = mask_end;
}

void Scheduler::complete(RequestState& request) {
  request.num_computed_tokens += request.num_scheduled_tokens;
  request.batch_idx = -1;
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
    const BlockHash& parent = i == 0 ? root_ : request.block_hashes[i - 1];
    request.block_hashes.push_back(hash_block(parent, std::span(request.token_ids).subspan(i * size, size)));
  }
}

void Scheduler::finish(RequestState& request) {
  QUIRE_CHECK(request.status == RequestState::Status::kRunning, "request " << request.request_id);
  release_row(request);
  num_mask_ids_ -= request.mask_ids.size();
  request.status = RequestState::Status::kFinished;
  has_finished_ = true;
}

void Scheduler::end_step() {
  is_batch_out_ = false;
  if (!has_finished_) return;
  std::erase_if(running_, [](const RequestState* r) { return r->status == RequestState::Status::kFinished; });
  has_finished_ = false;
}

void Scheduler::link_waiting(RequestState& request, RequestState* before) {
  RequestState* after = before ? before->previous : waiting_tail_;
  request.next = before;
  request.previous = after;
  (after ? after->next : waiting_head_) = &request;
  (before ? before->previous : waiting_tail_) = &request;
  request.status = RequestState::Status::kWaiting;
  ++num_waiting_;
}

void Scheduler::unlink_waiting(RequestState& request) {
  (request.previous ? request.previous->next : waiting_head_) = request.next;
  (request.next ? request.next->previous : waiting_tail_) = request.previous;
  request.previous = request.next = nullptr;
  --num_waiting_;
  if (refused_ == &request) refused_ = nullptr;
}

void Scheduler::check_integrity() const {
  blocks_.check_integrity();
  QUIRE_CHECK(blocks_.num_open_rows() == num_running(), blocks_.num_open_rows()
                                                            << " open rows, " << num_running() << " running");
  std::vector<bool> is_taken(static_cast<size_t>(blocks_.num_rows()), false);
  for (const RequestState* request : running_) {
    const auto where = [&] { return "request " + std::to_string(request->request_id); };
    QUIRE_CHECK(request->status == RequestState::Status::kRunning, where());
    QUIRE_CHECK(request->row >= 0 && blocks_.is_open(request->row) && !is_taken[request->row],
                where() << ", row " << request->row);
    is_taken[request->row] = true;
    const auto num_blocks = static_cast<int32_t>(blocks_.blocks(request->row).size());
    QUIRE_CHECK(request->num_computed_tokens < request->num_tokens(),
                where() << ": " << request->num_computed_tokens << " of " << request->num_tokens());
    QUIRE_CHECK(request->num_computed_tokens <= num_blocks * config_.block_size,
                where() << ": " << request->num_computed_tokens << " computed, " << num_blocks << " blocks");
    QUIRE_CHECK((num_blocks - 1) * config_.block_size < request->num_tokens(),
                where() << ": " << request->num_tokens() << " tokens, " << num_blocks << " blocks");
    QUIRE_CHECK(request->num_tokens() <= request->max_total_tokens, where());
  }
  int32_t num_waiting = 0;
  const RequestState* previous = nullptr;
  for (const RequestState* request = waiting_head_; request; previous = request, request = request->next) {
    QUIRE_CHECK(request->status == RequestState::Status::kWaiting && request->row < 0 &&
                    request->previous == previous,
                "request " << request->request_id);
    QUIRE_CHECK(++num_waiting <= num_waiting_, "queue of " << num_waiting_);
  }
  QUIRE_CHECK(num_waiting == num_waiting_ && previous == waiting_tail_,
              num_waiting << " of " << num_waiting_);
}

}  // namespace quire
