// One request of a client while it is being answered: what came in, what the engine produced, what has left.
// It has the n sequences that the engine makes of the prompt. A client that streams gets them as they come, a
// response for each run of one sequence; else one response has them all.
//
// One thread at a time: execute() makes it, the generation thread does the rest.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "chunk.h"
#include "failure.h"
#include "generation_request.h"
#include "metrics.h"
#include "open_request.h"
#include "outputs.h"
#include "unary_response.h"

namespace quire::triton {

class ClientRequest {
 public:
  using Clock = std::chrono::steady_clock;

  // One prompt of the server's request.
  ClientRequest(std::shared_ptr<OpenRequest> open, GenerationRequest generation, uint64_t owner,
                std::shared_ptr<ModelMetrics> metrics);
  // One prompt of a request to role unary, answered through `response`.
  ClientRequest(std::shared_ptr<UnaryResponse> response, size_t prompt, GenerationRequest generation,
                uint64_t owner, std::shared_ptr<ModelMetrics> metrics);

  uint64_t id() const { return generation_.request.request_id; }
  const NewRequest& request() const { return generation_.request; }
  bool is_open() const { return unary_ || open_; }
  // No more will come of the engine: it has finished, or the request ends with an error.
  bool is_finished() const { return num_unfinished_ == 0 || has_failed_; }
  // Whether the engine works on more than the one sequence that it says has ended.
  bool has_siblings() const { return num_unfinished_ > 1; }
  // As the server says of this very request.
  bool is_cancelled() const { return unary_ ? unary_->is_over() : open_->is_over(); }
  // What a prompt has in common with the others of its request; null where it has no others.
  const void* shared_response() const {
    if (unary_) return unary_->num_prompts() > 1 ? unary_.get() : nullptr;
    return open_->num_prompts() > 1 ? open_.get() : nullptr;
  }
  // Whether its chunks go on to a detokenizer.
  bool is_acknowledged() const { return generation_.tokenized.acknowledge && !unary_ && is_open(); }
  bool has_output() const { return has_output_; }  // the engine released ids, of any sequence

  bool is_past_deadline(Clock::time_point now) const {
    const int64_t deadline_ns = generation_.request.deadline_ns;
    return deadline_ns != 0 && now.time_since_epoch() >= std::chrono::nanoseconds(deadline_ns);
  }

  bool is_submitted() const { return is_submitted_; }  // the engine knows it
  void mark_submitted() { is_submitted_ = true; }

  // Takes what the engine released. Throws InternalError when the engine breaks the rules of Release.
  // outputs: whose release it is.
  void take(const Release& release, const StepOutputs& outputs);
  // Ends all streams that the engine has not finished, as if it had done so with no more ids.
  void end_sequences(FinishReason reason);
  // The outstanding chunk has been dealt with; now an error may leave, see end_with_error().
  void acknowledge();
  // A detokenizer has dealt with the chunk, and acknowledges it when a busy HTTP thread has the response.
  void wait_for_delivery() { is_waiting_for_delivery_ = is_outstanding_; }

  // Whether send() has something to say now: a client that does not stream gets one response at the end, or
  // one at the end of each sequence.
  bool is_due() const {
    if (!is_open() || is_outstanding_ || (open_ && !open_->is_open())) return false;
    return is_finished() || (sends_one() && find_due() != nullptr);
  }
  // Sends what is pending, of one sequence or of all, as one response. When the engine has finished and
  // nothing else is pending it is the last, and completes the request.
  void send();
  // Whether nothing was sent for `silence`, so that only a probe will tell if the client is still there.
  bool is_probe_due(Clock::time_point now, Clock::duration silence) const;
  void send_probe();
  // Whether the chunk sent last has not been acknowledged for `patience`.
  bool is_abandoned(Clock::time_point now, Clock::duration patience) const;

  // Completes the request with an error once no chunk is outstanding. What is pending is dropped.
  void end_with_error(Failure failure, const std::string& message);
  // Completes the request with an error at once.
  void fail(Failure failure, const std::string& message);

 private:
  ClientRequest(GenerationRequest generation, uint64_t owner, std::shared_ptr<ModelMetrics> metrics);
  void note_miss();  // of the deadline; counts once

  // What the engine makes of the prompt, once.
  struct Sequence {
    Chunk pending;  // what the engine released and has not left
    bool is_finished = false;
    bool is_anything_sent = false;

    bool is_due() const { return !pending.ids.empty() || pending.finish_reason != FinishReason::kNone; }
  };

  // Whether a response is of one sequence, not of all.
  bool sends_one() const { return !unary_ && (generation_.stream || generation_.tokenized.is_separate); }
  // One that has something to send.
  const Sequence* find_due() const;
  void send_to_unary();
  // What is pending of the sequence, whole; nothing is, then.
  Chunk take_chunk(Sequence& sequence, bool is_last);
  // Says whose chunk it is.
  void sign(Chunk& chunk, bool is_last) const;

  // One of the two; null once completed.
  std::shared_ptr<OpenRequest> open_;
  std::shared_ptr<UnaryResponse> unary_;
  size_t prompt_idx_ = 0;
  const GenerationRequest generation_;
  const uint64_t owner_;
  const std::shared_ptr<ModelMetrics> metrics_;
  const uint32_t wanted_;  // outputs

  std::vector<Sequence> sequences_;  // [n]
  size_t num_unfinished_;            // of them
  size_t num_ends_left_;             // to be sent
  size_t next_sequence_ = 0;         // where the search for a due one begins: all get their turn
  bool has_failed_ = false;
  // If so:
  Failure failure_ = Failure::kInternal;
  std::string error_;

  bool has_output_ = false;
  bool has_missed_deadline_ = false;
  bool is_submitted_ = false;
  bool is_outstanding_ = false;  // sent, to be acknowledged
  bool is_waiting_for_delivery_ = false;
  bool is_warned_ = false;  // the warnings have left
  Clock::time_point last_sent_ = Clock::now();
};

}  // namespace quire::triton
