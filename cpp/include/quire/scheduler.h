// Decides what runs in each step, under one token budget and without phases.
//
// Each request has num_tokens known tokens and num_computed_tokens of them in the cache; a step moves
// requests forward, running ones first, then waiting ones, both in the order of their arrival. Chunked
// prefill, prefix reuse, and recomputing after a preemption are all the same move. A request gets a new token
// in the step that computes its last known one.
//
// Progress: the blocks of a prompt are taken whole at admission, so only growing outputs can run out of
// blocks. Then the request admitted last gives its blocks back and waits at the head of the queue. The first
// running request is never given up for another one, and alone it fits (the caller checks that), so it ends.
#pragma once

#include <cstdint>
#include <vector>

#include "quire/batch.h"
#include "quire/block_manager.h"
#include "quire/config.h"
#include "quire/request_state.h"

namespace quire {

class Scheduler {
 public:
  // salt: of block hashes. config: valid.
  Scheduler(const EngineConfig& config, uint64_t salt);

  // Requests belong to the caller and stay where they are from add() to remove() or finish().
  // add: to the end of the queue. Needs token_ids and the limits; num_tokens must fit the pool.
  void add(RequestState& request);
  // Takes the request out, wherever it is, and frees its blocks. Legal between schedule() and the step's end.
  void remove(RequestState& request);

  // Builds the next batch. A batch whose tokens were not reported computed is forgotten, and its tokens come
  // again.
  const Batch& schedule();
  const Batch& batch() const { return batch_; }

  // The step's end. For each request of the batch that is still there: complete(), then perhaps finish(); at
  // last end_step(). request(i): of batch index i; null when it was removed meanwhile.
  RequestState* request(int32_t batch_idx) const { return batch_requests_[batch_idx]; }
  void complete(RequestState& request);
  void finish(
      RequestState& request);  // as remove(), for a running request; it leaves the lists in end_step()
  void end_step();

  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return num_waiting_; }
  uint64_t num_preemptions() const { return num_preemptions_; }
  uint64_t prefix_cache_queries() const { return prefix_cache_queries_; }
  uint64_t prefix_cache_hits() const { return prefix_cache_hits_; }
  const BlockManager& blocks() const { return blocks_; }

  // Blocks, rows, lists and progress agree. Throws InternalError.
  void check_integrity() const;

 private:
  bool admit(RequestState& request);
  void preempt(RequestState& request);
  void release_row(RequestState& request);
  void append_to_batch(RequestState& request, int32_t num_tokens);
  void extend_hashes(RequestState& request, int32_t num_blocks);
  void link_waiting(RequestState& request, RequestState* before);
  void unlink_waiting(RequestState& request);

  EngineConfig config_;
  BlockHash root_;
  BlockManager blocks_;
  int32_t num_watermark_blocks_;
  std::vector<RequestState*> running_;  // in the order of admission
  RequestState* waiting_head_ = nullptr;
  RequestState* waiting_tail_ = nullptr;
  int32_t num_waiting_ = 0;
  bool has_finished_ = false;  // some of running_ are finished: between finish() and end_step()

  Batch batch_;
  std::vector<RequestState*> batch_requests_;  // [batch_.num_reqs]
  bool is_batch_out_ = false;                  // between schedule() and end_step()
  size_t num_mask_ids_ = 0;                    // of all requests: what batch_.mask_ids must be able to hold

  // An attempt to admit the queue's head that found too few blocks is repeated only with more free ones.
  const RequestState* refused_ = nullptr;
  int32_t refused_num_free_ = 0;

  uint64_t num_preemptions_ = 0;
  uint64_t prefix_cache_queries_ = 0;
  uint64_t prefix_cache_hits_ = 0;
};

}  // namespace quire
