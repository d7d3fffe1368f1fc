// Decides what runs in each step, under one token budget and without phases.
//
// Each sequence has num_tokens known tokens and num_computed_tokens of them in the cache; a step moves
// sequences forward, running ones first, then waiting ones, both in the order of their priority, then arrival
// (Sequence::goes_before()). Chunked prefill, prefix reuse, and recomputing after a preemption are all
// the same move. A sequence gets new tokens in the step that computes its last known one: usually one, and as
// many as the runner gives while no other batch is in flight (EngineCore::update()).
//
// A waiting sequence of better priority does not wait for running ones of worse priority: it takes the step's
// tokens first, and where rows or blocks are missing the worst of those give theirs back. Where all
// priorities are equal none of this happens.
//
// Up to max_batches_in_flight batches are in flight at once: a sequence moves on from what is scheduled
// already, and a token that is sampled but not known yet goes into the next batch by its row
// (Batch::token_ids). The batches run one after the other, in the order of schedule(), and end in that order.
// The sequence of an entry may be gone when its batch ends (it met its stop, was cancelled, or gave its
// blocks back); the entry's result is dropped then.
//
// Blocks are freed at once all the same, even those that a batch in flight still writes. A free block's new
// holder writes it in a later batch, so after that; and no other sequence finds it by its hash, because a
// block gets its hash only when it is full of tokens whose batches have ended (complete()), and is never
// written from then on.
//
// Sequences of one request (siblings) share its prompt's blocks. One is admitted as any sequence; the others
// wait until its prompt has its KV, and fork from it: they share the full blocks and get a copy of the last
// one (Batch::block_copies), so a block that is still written has one holder. A fork's first step computes
// the prompt's last token once more, to sample after it; its KV is there and not written again (slot -1).
// Any sibling that has the prompt will do as a source; where none runs, one is admitted as any sequence
// again.
//
// Progress: the blocks of a prompt are taken whole at admission, so only growing outputs can run out of
// blocks. Then the last running sequence gives its blocks back and waits, before those that came later. The
// first running sequence is given up for none but those of better priority, and alone it fits (the caller
// checks that), so it ends. A priority that always has sequences can starve the worse ones; that is its
// meaning.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quire/batch.h"
#include "quire/block_manager.h"
#include "quire/config.h"
#include "quire/request.h"
#include "quire/sequence.h"

namespace quire {

class Scheduler {
 public:
  // salt: of block hashes. config: valid.
  Scheduler(const EngineConfig& config, uint64_t salt);

  // Sequences belong to the caller and stay where they are from add() to remove() or finish().
  // add: to the queue. Needs token_ids, priority, history and the limits; num_tokens must fit the pool.
  // sibling: another sequence of the same request, with the same prompt and limits; null: it is the first.
  void add(Sequence& sequence, Sequence* sibling = nullptr);
  // Takes the sequence out, wherever it is, and frees its blocks. Legal while batches are in flight.
  void remove(Sequence& sequence);

  // Builds the next batch; it is in flight unless it has no tokens. Fewer than max_batches_in_flight may be
  // before.
  // now_ns: for Sequence::history.
  const Batch& schedule(int64_t now_ns);
  int32_t num_batches_in_flight() const { return num_in_flight_; }
  // Takes back what batches in flight have scheduled: their tokens come again.
  void forget_batches();

  // The end of the oldest batch in flight. For each of its sequences that is still there: complete(), then
  // perhaps finish(); at last end_step(). sequence(i): of index i; null when it is gone.
  const Batch& oldest() const { return in_flight_[oldest_].batch; }
  int64_t oldest_scheduled_ns() const { return in_flight_[oldest_].scheduled_ns; }
  Sequence* sequence(int32_t batch_idx) const { return in_flight_[oldest_].sequences[batch_idx]; }
  // The entry's tokens have their KV now, if its sequence kept its blocks. is_sampled: its id comes next.
  void complete(int32_t batch_idx, bool is_sampled);
  void finish(Sequence& sequence);  // as remove(), but it leaves the list of running ones in end_step()
  void end_step();
  void drop_finished();  // from the list of running ones; end_step() does it

  // Tokens of the sequence's prompt that surely are still to be computed: neither done, nor in batches in
  // flight, nor found in the cache. 0 once it has an output token.
  int32_t num_prompt_tokens_left(const Sequence& sequence) const;
  // The sequence's steps of waiting so far, by WaitReason.
  std::array<uint64_t, kNumWaitReasons> waits(const Sequence& sequence) const;

  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return num_waiting_; }
  // Counters since the start, those of the engine around it as well.
  EngineStats& totals() { return totals_; }
  const EngineStats& totals() const { return totals_; }
  const BlockManager& blocks() const { return blocks_; }

  // Blocks, rows, lists and progress agree. Throws InternalError.
  void check_integrity() const;

 private:
  void fill_batch(const Batch& batch);  // batch: the newest
  bool admit(Sequence& sequence);
  void count_wait(const Batch& batch);
  bool may_fork(const Sequence& sequence) const;
  const Sequence* fork_source(const Sequence& sequence) const;
  bool waits_for_sibling(const Sequence& sequence) const;
  bool fork(Sequence& sequence, const Sequence& source);
  void take_back_forks();
  void unlink_sibling(Sequence& sequence);
  void preempt(Sequence& sequence);  // the last running one
  void release_row(Sequence& sequence);
  void check_entries(const Sequence& sequence) const;
  void check_siblings(const Sequence& sequence) const;
  void check_written_blocks(const Sequence& sequence) const;
  void append_to_batch(Sequence& sequence, int32_t num_tokens);
  void append_prompt_rows(const Sequence& sequence, int32_t begin, int32_t end);
  void publish_blocks(Sequence& sequence);
  void extend_hashes(Sequence& sequence, int32_t num_blocks);
  void link_waiting(Sequence& sequence);  // to its place
  Sequence* first_waiting() const;        // that does not wait for a sibling; null: none
  bool waits_for_worse() const;           // it is better than some running one
  bool was_refused(const Sequence& sequence) const;
  bool push_out_worse(const Sequence& sequence);
  void start_running(Sequence& sequence);
  int32_t num_tokens_at_once(const Sequence& sequence, std::span<const BlockHash> hashes) const;
  std::optional<BlockManager::Opened> open_row(const Sequence& sequence, std::span<const BlockHash> hashes);
  bool may_preempt_for(const Sequence& sequence, std::span<const BlockHash> hashes) const;
  std::span<const BlockHash> findable_hashes(const Sequence& sequence) const;
  void unlink_waiting(Sequence& sequence);

  EngineConfig config_;
  BlockHash root_;
  BlockManager blocks_;
  MaskTable masks_;
  int32_t num_watermark_blocks_;
  std::vector<Sequence*> running_;  // in the order of goes_before()
  Sequence* waiting_head_ = nullptr;
  Sequence* waiting_tail_ = nullptr;
  int32_t num_waiting_ = 0;
  bool has_finished_ = false;  // some of running_ are finished: between finish() and end_step()

  struct BatchInFlight {
    Batch batch;
    std::vector<Sequence*> sequences;     // [batch.num_seqs]; null: gone
    std::vector<int32_t> num_new_tokens;  // [batch.num_seqs]; 0: the sequence gave its blocks back
    int64_t scheduled_ns = 0;
  };
  void allocate(BatchInFlight& slot) const;
  BatchInFlight& newest() { return in_flight_[static_cast<size_t>(newest_)]; }
  // Calls visit(batch, batch_idx) for each entry of the sequence in batches in flight. It searches them: for
  // sequences that finish or are preempted, not for every step.
  template <class Visit>
  void for_each_entry(const Sequence& sequence, Visit visit);

  std::vector<BatchInFlight> in_flight_;  // a ring of config_.max_batches_in_flight
  int32_t oldest_ = 0;
  int32_t num_in_flight_ = 0;
  int32_t newest_ = 0;  // what schedule() builds

  // An attempt to admit the queue's head that found too few blocks is repeated only with more free ones.
  const Sequence* refused_ = nullptr;
  int32_t refused_num_free_ = 0;

  int64_t now_ns_ = 0;  // of schedule()
  uint64_t num_added_ = 0;
  WaitReason wait_reason_ = WaitReason::kNone;            // of this step
  std::array<uint64_t, kNumWaitReasons> num_waits_ = {};  // steps in which somebody had to wait, by reason
  EngineStats totals_;
};

}  // namespace quire
