#include "quire/scheduler.h"

#include <algorithm>
#include <numeric>

#include "quire/error.h"

namespace quire {

Scheduler::Scheduler(const EngineConfig& config, uint64_t salt)
    : config_(config),
      root_(root_hash(salt)),
      blocks_(config.num_blocks, config.block_size, config.max_num_seqs, config.max_blocks_per_request(),
              config.window),
      masks_(config.max_num_seqs, config.vocab_size),
      num_watermark_blocks_(static_cast<int32_t>(config.watermark * static_cast<float>(config.num_blocks))) {
  in_flight_.resize(static_cast<size_t>(config.max_batches_in_flight));
  for (BatchInFlight& slot : in_flight_) allocate(slot);
  running_.reserve(static_cast<size_t>(config.max_num_seqs));
}

void Scheduler::allocate(BatchInFlight& slot) const {
  const int64_t max_tokens = config_.max_num_batched_tokens;
  const int64_t max_seqs = std::min(config_.max_num_seqs, config_.max_num_batched_tokens);
  Batch& batch = slot.batch;
  batch.allocate({1, max_tokens, max_seqs, max_seqs, max_tokens, 0});
  batch.block_tables = blocks_.block_tables();
  batch.block_table_stride = blocks_.stride();
  batch.num_block_table_rows = blocks_.num_rows();
  slot.sequences.resize(static_cast<size_t>(max_seqs));
  slot.num_new_tokens.resize(static_cast<size_t>(max_seqs));
}

template <class Visit>
void Scheduler::for_each_entry(const Sequence& sequence, Visit visit) {
  for (int32_t i = 0, num_left = sequence.num_entries; num_left > 0 && i < num_in_flight_; ++i) {
    BatchInFlight& batch = in_flight_[(oldest_ + i) % config_.max_batches_in_flight];
    const auto begin = batch.sequences.begin(), end = begin + batch.batch.num_seqs;
    const auto found = std::find(begin, end, &sequence);
    if (found == end) continue;
    visit(batch, static_cast<int32_t>(found - begin));
    --num_left;
  }
}

void Scheduler::add(Sequence& sequence, Sequence* sibling) {
  QUIRE_CHECK(sequence.status == Sequence::Status::kNew, "sequence " << sequence.request_id);
  if (config_.enable_prefix_caching) {
    sequence.block_hashes.reserve(static_cast<size_t>(sequence.max_total_tokens / config_.block_size));
    if (sibling) sequence.block_hashes = sibling->block_hashes;
    extend_hashes(sequence, sequence.num_tokens() / config_.block_size);
  }
  if (sibling) {
    Sequence* after = sibling->next_sibling ? sibling->next_sibling : sibling;
    sibling->next_sibling = &sequence;
    sequence.next_sibling = after;
  }
  sequence.arrival = num_added_++;
  link_waiting(sequence);
}

void Scheduler::remove(Sequence& sequence) {
  finish(sequence);
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
  // A batch without tokens is not launched: what it would tell waits.
  if (batch.num_tokens > 0) blocks_.take_updates(batch.block_table_updates);
  const auto num_updates = static_cast<int32_t>(batch.block_table_updates.size() / 2);
  batch.header = {batch.num_seqs, batch.num_tokens, batch.num_sampled, num_updates};
  if (batch.num_tokens > 0) ++num_in_flight_;
  return batch;
}

void Scheduler::fill_batch(const Batch& batch) {
  const uint64_t num_preemptions_before = totals_.num_preemptions;
  wait_reason_ = WaitReason::kNone;
  const bool may_overtake = waits_for_worse();
  for (size_t i = 0; i < running_.size() && batch.num_tokens < config_.max_num_batched_tokens; ++i) {
    if (may_overtake && wait_reason_ == WaitReason::kNone) {
      Sequence* const better = first_waiting();
      if (better && better->priority < running_[i]->priority) {
        if (admit(*better)) continue;  // at this place; who was here is the next one, or had to go
        if (i >= running_.size()) break;
      }
    }
    Sequence& sequence = *running_[i];
    if (i + kPrefetchDistance < running_.size()) prefetch(running_[i + kPrefetchDistance], kNumHotBytes);
    // The last id is on its way, and needs no KV.
    if (sequence.num_tokens_ahead() >= sequence.max_total_tokens) continue;
    if (sequence.waits_for_ids && sequence.num_pending_ids > 0) continue;
    const int32_t budget = config_.max_num_batched_tokens - batch.num_tokens;
    const int32_t num_left = sequence.num_tokens_ahead() - sequence.num_computed_ahead();
    if (num_left > budget && !config_.enable_chunked_prefill) break;
    const int32_t num_now = std::min(num_left, budget);
    while (!blocks_.extend(sequence.row, sequence.num_computed_ahead() + num_now)) {
      // Sequences after `sequence` are not in this batch yet.
      Sequence& victim = *running_.back();
      preempt(victim);
      wait_reason_ = WaitReason::kBlocks;
      if (&victim == &sequence) break;
    }
    if (sequence.status == Sequence::Status::kRunning) append_to_batch(sequence, num_now);
  }

  // Blocks given back in this step are for those that run, or were admitted for them; admitting more at once
  // would only preempt again.
  while (wait_reason_ == WaitReason::kNone && totals_.num_preemptions == num_preemptions_before &&
         batch.num_tokens < config_.max_num_batched_tokens) {
    Sequence* const sequence = first_waiting();
    if (!sequence || !admit(*sequence)) break;
  }
  if (first_waiting()) count_wait(batch);
}

void Scheduler::forget_batches() {
  for (; num_in_flight_ > 0; --num_in_flight_, oldest_ = (oldest_ + 1) % config_.max_batches_in_flight) {
    const BatchInFlight& forgotten = in_flight_[oldest_];
    for (int32_t i = 0; i < forgotten.batch.num_seqs; ++i) {
      Sequence* sequence = forgotten.sequences[i];
      if (sequence) sequence->num_scheduled_tokens = sequence->num_pending_ids = sequence->num_entries = 0;
    }
  }
  take_back_forks();
  for (Sequence* sequence : running_) sequence->has_written_tables = false;
  masks_.forget();
  blocks_.repeat_updates();
}

bool Scheduler::admit(Sequence& sequence) {
  wait_reason_ = WaitReason::kBlocks;  // unless it is admitted
  // Preempted, and its last id is on its way, into a row that it no longer has. It may even end with it.
  if (sequence.num_pending_ids > 0) return false;
  const int32_t num_tokens = sequence.num_tokens();
  const int32_t budget = config_.max_num_batched_tokens - newest().batch.num_tokens;
  if (const Sequence* source = fork_source(sequence)) return fork(sequence, *source);
  const std::span<const BlockHash> hashes = findable_hashes(sequence);
  if (!config_.enable_chunked_prefill) {
    const int32_t num_found = blocks_.num_cached_blocks(hashes) * config_.block_size;
    if (num_tokens - num_found > budget) {
      wait_reason_ = WaitReason::kTokenBudget;
      return false;
    }
  }
  const auto opened = open_row(sequence, hashes);
  if (!opened) return false;
  wait_reason_ = WaitReason::kNone;

  unlink_waiting(sequence);
  sequence.status = Sequence::Status::kRunning;
  sequence.row = opened->row;
  sequence.num_published_blocks = opened->num_cached_blocks;
  sequence.num_computed_tokens = opened->num_cached_blocks * config_.block_size;
  if (sequence.num_cached_tokens < 0) {
    sequence.num_cached_tokens = sequence.num_computed_tokens;
    if (config_.enable_prefix_caching) {
      totals_.prefix_cache_queries += static_cast<uint64_t>(num_tokens);
      totals_.prefix_cache_hits += static_cast<uint64_t>(sequence.num_computed_tokens);
    }
  }
  start_running(sequence);
  append_to_batch(sequence, std::min(num_tokens - sequence.num_computed_tokens, budget));
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  QUIRE_CHECK(&sequence == running_.back(), "sequence " << sequence.request_id);
  running_.pop_back();
  release_row(sequence);
  // Ids that batches in flight sample for it stay good; the KV that they compute for it is lost with the
  // blocks.
  for_each_entry(sequence, [](BatchInFlight& batch, int32_t idx) { batch.num_new_tokens[idx] = 0; });
  sequence.history->leave_at(sequence.num_computed_ahead());
  ++sequence.history->num_preemptions;
  sequence.num_scheduled_tokens = 0;
  sequence.num_computed_tokens = 0;
  sequence.num_published_blocks = 0;
  if (config_.enable_prefix_caching) extend_hashes(sequence, sequence.num_tokens() / config_.block_size);
  link_waiting(sequence);
  ++totals_.num_preemptions;
}

void Scheduler::release_row(Sequence& sequence) {
  blocks_.close(sequence.row);
  sequence.row = -1;
  sequence.is_forked = false;
  sequence.has_written_tables = false;
}

void Scheduler::append_to_batch(Sequence& sequence, int32_t num_tokens) {
  BatchInFlight& slot = newest();
  Batch& batch = slot.batch;
  const int32_t seq_idx = batch.num_seqs++;
  const int32_t first_token = batch.num_tokens;
  const int32_t begin = sequence.num_computed_ahead();
  const int32_t end = begin + num_tokens;
  sequence.num_scheduled_tokens += num_tokens;
  ++sequence.num_entries;
  slot.sequences[seq_idx] = &sequence;
  slot.num_new_tokens[seq_idx] = num_tokens;

  const int32_t* token_ids = sequence.token_ids.data();
  const int32_t num_known = sequence.num_tokens();
  for (int32_t position = begin, i = first_token; position < end; ++position, ++i) {
    batch.token_ids[i] = position < num_known ? token_ids[position] : ~sequence.row;
    batch.positions[i] = position;
    batch.slot_mapping[i] = blocks_.slot(sequence.row, position);
  }
  batch.num_tokens += num_tokens;
  batch.request_ids[seq_idx] = sequence.request_id;
  batch.sequence_index[seq_idx] = sequence.index;
  batch.query_start_loc[seq_idx + 1] = batch.num_tokens;
  batch.seq_lens[seq_idx] = end;
  batch.block_table_rows[seq_idx] = sequence.row;
  batch.max_query_len = std::max(batch.max_query_len, num_tokens);
  batch.max_seq_len = std::max(batch.max_seq_len, end);
  if (sequence.num_prompt_logprobs > 0) append_prompt_rows(sequence, begin, end);
  const bool is_sampled = end == sequence.num_tokens_ahead();
  batch.sample_offsets[seq_idx + 1] = batch.num_sampled + is_sampled;
  if (!is_sampled) return;

  const int32_t sample_idx = batch.num_sampled++;
  const int32_t output_idx = sequence.num_tokens_ahead() - sequence.num_prompt_tokens;
  ++sequence.num_pending_ids;
  batch.sample_token_idx[sample_idx] = batch.num_tokens - 1;
  batch.sample_rows[sample_idx] = sequence.row;
  batch.temperature[sample_idx] = sequence.temperature;
  batch.top_p[sample_idx] = sequence.top_p;
  batch.top_k[sample_idx] = sequence.top_k;
  batch.seed[sample_idx] = sequence.seed;
  batch.output_idx[sample_idx] = output_idx;
  batch.mask_rows[sample_idx] = -1;
  batch.num_logprobs[sample_idx] = sequence.num_logprobs;
  batch.has_logprobs |= sequence.num_logprobs > 0;
  if (sequence.adjustments || batch.has_adjustments) append_adjustments(batch, sequence, masks_);
}

// Asks for the logits of the tokens in [begin, end) that predict another token of the prompt. The sequence's
// entry is the batch's last.
void Scheduler::append_prompt_rows(const Sequence& sequence, int32_t begin, int32_t end) {
  Batch& batch = newest().batch;
  const int32_t first_token = batch.num_tokens - (end - begin);
  end = std::min(end, sequence.num_prompt_tokens - 1);
  for (int32_t place = std::max(begin, sequence.num_known_prompt_logprobs); place < end; ++place) {
    const int32_t row = batch.num_prompt_rows++;
    batch.prompt_token_idx[row] = first_token + place - begin;
    batch.prompt_seq_idx[row] = batch.num_seqs - 1;
    batch.prompt_next_ids[row] = sequence.token_ids[place + 1];
    batch.prompt_num_logprobs[row] = sequence.num_prompt_logprobs;
  }
}

void Scheduler::complete(int32_t batch_idx, bool is_sampled) {
  BatchInFlight& ending = in_flight_[oldest_];
  Sequence& sequence = *ending.sequences[batch_idx];
  const int32_t num_new_tokens = ending.num_new_tokens[batch_idx];
  ending.sequences[batch_idx] = nullptr;
  --sequence.num_entries;
  sequence.num_pending_ids -= is_sampled;
  sequence.num_scheduled_tokens -= num_new_tokens;
  sequence.num_computed_tokens += num_new_tokens;
  publish_blocks(sequence);
  // Batches in flight, and those to come, begin there.
  if (config_.window > 0 && sequence.row >= 0 && num_new_tokens > 0) {
    blocks_.leave_behind(sequence.row, sequence.num_computed_tokens);
  }
}

// Blocks that are full, and whose KV is computed.
void Scheduler::publish_blocks(Sequence& sequence) {
  if (!config_.enable_prefix_caching) return;
  const int32_t size = config_.block_size;
  if (sequence.num_computed_tokens < (sequence.num_published_blocks + 1) * size) return;
  const int32_t num_full = sequence.num_computed_tokens / size;
  extend_hashes(sequence, num_full);
  for (int32_t& i = sequence.num_published_blocks; i < num_full; ++i) {
    blocks_.publish(sequence.row, i, sequence.block_hashes[i]);
  }
}

void Scheduler::extend_hashes(Sequence& sequence, int32_t num_blocks) {
  const auto size = static_cast<size_t>(config_.block_size);
  for (size_t i = sequence.block_hashes.size(); i < static_cast<size_t>(num_blocks); ++i) {
    const BlockHash parent = i > 0                         ? sequence.block_hashes[i - 1]
                             : sequence.cache_salt.empty() ? root_
                                                           : salted_root(root_, sequence.cache_salt);
    sequence.block_hashes.push_back(
        hash_block(parent, std::span(sequence.token_ids).subspan(i * size, size)));
  }
}

void Scheduler::finish(Sequence& sequence) {
  for_each_entry(sequence, [](BatchInFlight& batch, int32_t idx) { batch.sequences[idx] = nullptr; });
  sequence.num_entries = 0;
  if (sequence.status == Sequence::Status::kWaiting) {
    unlink_waiting(sequence);
  } else {
    QUIRE_CHECK(sequence.status == Sequence::Status::kRunning, "sequence " << sequence.request_id);
    release_row(sequence);
    has_finished_ = true;
  }
  if (sequence.next_sibling) unlink_sibling(sequence);
  sequence.status = Sequence::Status::kFinished;
}

void Scheduler::end_step() {
  QUIRE_CHECK(num_in_flight_ > 0, "no batch is in flight");
  oldest_ = (oldest_ + 1) % config_.max_batches_in_flight;
  --num_in_flight_;
  drop_finished();
}

void Scheduler::drop_finished() {
  if (!has_finished_) return;
  std::erase_if(running_, [](const Sequence* r) { return r->status == Sequence::Status::kFinished; });
  has_finished_ = false;
}

}  // namespace quire
