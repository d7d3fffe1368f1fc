// Scheduler: what always holds between its parts.
#include <algorithm>
#include <numeric>
#include <span>

#include "quire/error.h"
#include "quire/scheduler.h"

namespace quire {

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
    QUIRE_CHECK(request->num_computed_ahead() <= num_blocks * config_.block_size,
                where() << ": " << request->num_computed_ahead() << " computed, " << num_blocks << " blocks");
    QUIRE_CHECK(request->num_computed_ahead() < request->num_tokens_ahead(),
                where() << ": " << request->num_computed_ahead() << " of " << request->num_tokens_ahead());
    // Room is taken for ids that are not known yet, or were on their way before forget_batches().
    const int32_t num_tokens = request->num_tokens() + config_.max_batches_in_flight - 1;
    QUIRE_CHECK((num_blocks - 1) * config_.block_size < num_tokens,
                where() << ": " << num_tokens << " tokens, " << num_blocks << " blocks");
    QUIRE_CHECK(request->num_tokens_ahead() <= request->max_total_tokens, where());
    check_entries(*request);
    check_siblings(*request);
    check_written_blocks(*request);
  }
  const auto by_order = [](const RequestState* a, const RequestState* b) { return a->goes_before(*b); };
  QUIRE_CHECK(std::is_sorted(running_.begin(), running_.end(), by_order), num_running() << " running");
  int32_t num_waiting = 0;
  const RequestState* previous = nullptr;
  for (const RequestState* request = waiting_head_; request; previous = request, request = request->next) {
    QUIRE_CHECK(request->status == RequestState::Status::kWaiting && request->row < 0 &&
                    request->previous == previous && request->num_computed_ahead() == 0 &&
                    (!previous || previous->goes_before(*request)),
                "request " << request->request_id);
    check_entries(*request);
    check_siblings(*request);
    QUIRE_CHECK(++num_waiting <= num_waiting_, "queue of " << num_waiting_);
  }
  QUIRE_CHECK(num_waiting == num_waiting_ && previous == waiting_tail_,
              num_waiting << " of " << num_waiting_);
  QUIRE_CHECK(num_in_flight_ >= 0 && num_in_flight_ <= config_.max_batches_in_flight,
              num_in_flight_ << " batches are in flight");
}

// What the request has in batches in flight is what the batches say; no other batch knows it.
void Scheduler::check_entries(const RequestState& request) const {
  int32_t num_entries = 0;
  int32_t num_scheduled = 0;
  int32_t num_sampled = 0;
  for (int32_t i = 0; i < num_in_flight_; ++i) {
    const BatchInFlight& slot = in_flight_[(oldest_ + i) % config_.max_batches_in_flight];
    const Batch& batch = slot.batch;
    for (int32_t idx = 0; idx < batch.num_reqs; ++idx) {
      if (slot.requests[idx] != &request) continue;
      ++num_entries;
      num_scheduled += slot.num_new_tokens[idx];
      num_sampled += batch.sample_offsets[idx + 1] - batch.sample_offsets[idx];
    }
  }
  QUIRE_CHECK(num_entries == request.num_entries && num_scheduled == request.num_scheduled_tokens &&
                  num_sampled == request.num_pending_ids,
              "request " << request.request_id << ": " << num_entries << ", " << num_scheduled << " and "
                         << num_sampled << " in batches, " << request.num_entries << ", "
                         << request.num_scheduled_tokens << " and " << request.num_pending_ids << " counted");
}

}  // namespace quire
