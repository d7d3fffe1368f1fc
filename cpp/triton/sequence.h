// One request of a client while it is being answered: what came in, what the engine produced, what has left.
//
// Invariant: the request is completed (FINAL, statistics, release) exactly once, by send(), fail() or the
// destructor. One thread at a time: execute() makes it, the generation thread does the rest.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "chunk.h"
#include "generation_request.h"
#include "rows.h"

namespace quire::triton {

class Sequence {
 public:
  using Clock = std::chrono::steady_clock;

  // Takes over the server's request. Throws, without taking it over, when the server cannot make a response
  // factory.
  Sequence(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
           GenerationRequest generation, uint64_t owner);
  // One row of a request to role unary, answered through `rows`.
  Sequence(std::shared_ptr<Rows> rows, size_t row, GenerationRequest generation, uint64_t owner);
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  uint64_t id() const { return generation_.request.request_id; }
  const NewRequest& request() const { return generation_.request; }
  bool is_open() const { return request_ != nullptr || rows_ != nullptr; }
  // No more will come of the engine: it has finished, or the sequence ends with an error.
  bool is_finished() const { return finish_reason_ != FinishReason::kNone; }
  bool is_cancelled() const;  // as the server says of this very request

  bool is_past_deadline(Clock::time_point now) const {
    const int64_t deadline_ns = generation_.request.deadline_ns;
    return deadline_ns != 0 && now.time_since_epoch() >= std::chrono::nanoseconds(deadline_ns);
  }

  bool is_submitted() const { return is_submitted_; }  // the engine knows it
  void mark_submitted() { is_submitted_ = true; }

  // Takes what the engine released. Throws InternalError when the engine breaks the rules of Release.
  void take(const Release& release, std::span<const int32_t> ids);
  // Before the last take().
  void set_receipt(const Receipt& receipt) { receipt_ = receipt; }
  // The outstanding chunk has been dealt with; now an error may leave, see end_with_error().
  void acknowledge();

  // Whether send() has something to say now: a client that does not stream gets one response, at the end.
  bool is_due() const {
    return is_open() && !is_outstanding_ &&
           (is_finished() || (generation_.stream && num_sent_ < output_ids_.size()));
  }
  // Sends what is pending as one response. When the engine has finished it is the last, and completes the
  // request.
  void send();
  // Whether nothing was sent for `silence`, so that only a probe will tell if the client is still there.
  bool is_probe_due(Clock::time_point now, Clock::duration silence) const;
  void send_probe();
  // Whether the chunk sent last has not been acknowledged for `patience`.
  bool is_abandoned(Clock::time_point now, Clock::duration patience) const;

  // Completes the request with an error once no chunk is outstanding. What is pending is dropped.
  void end_with_error(TRITONSERVER_Error_Code code, const std::string& message);
  // Completes the request with an error at once.
  void fail(TRITONSERVER_Error_Code code, const std::string& message);

 private:
  void write_outputs(class ResponseBuilder& response, const Chunk& chunk) const;
  Chunk make_chunk(uint32_t flags) const;
  void complete(bool is_success);

  TRITONBACKEND_ModelInstance* instance_;
  TRITONBACKEND_Request* request_;  // null once completed
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
  std::shared_ptr<Rows> rows_;  // instead of these three; null once completed
  size_t row_ = 0;
  const GenerationRequest generation_;
  const uint64_t owner_;

  // All ids that the engine released; [0, num_sent_) have left. Prompt and these are what another engine
  // would need to go on.
  std::vector<int32_t> output_ids_;
  size_t num_sent_ = 0;
  // Of the pending ids [num_sent_, output_ids_.size()):
  bool is_first_ = true;
  OpenText open_text_;
  uint32_t num_textless_ids_ = 0;  // at the end, without text
  int32_t trim_ = 0;
  FinishReason finish_reason_ = FinishReason::kNone;
  std::optional<Receipt> receipt_;  // for the client, with the last chunk
  // Of kError:
  TRITONSERVER_Error_Code error_code_ = TRITONSERVER_ERROR_UNKNOWN;
  std::string error_;

  bool is_submitted_ = false;
  bool is_anything_sent_ = false;  // a response that is no probe
  bool is_outstanding_ = false;    // sent, to be acknowledged
  Clock::time_point last_sent_;
  uint64_t start_ns_ = 0;
  uint64_t first_output_ns_ = 0;
};

}  // namespace quire::triton
