// Keeps an engine running and speaks wire.h with it. One thread owns it and waits on its socket.
//
//   kIdle -> kStarting -> kReady
//                |          |      the connection ends
//                v          v
//                kEnding           waits for the exit status, so that errors can name it
//                |          |
//                |          v
//                |      kBackoff -> kStarting
//                v
//            kRefusing             three starts in a row failed; try_start() makes another attempt,
//                                  at most every few seconds
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "child_process.h"
#include "model_settings.h"
#include "quire/wire.h"

namespace quire::triton {

class EngineClient {
 public:
  using Clock = std::chrono::steady_clock;

  // Told by service(), on the owner's thread.
  class Events {
   public:
    virtual ~Events() = default;
    // May throw: then the engine counts as failed to start.
    virtual void on_ready(wire::ReadyFrame& ready) = 0;
    virtual void on_step(const StepOutputs& outputs) = 0;
    // A ready engine is gone; another is started. `why` completes the sentence "the engine ...".
    virtual void on_lost(const std::string& why) = 0;
    // A start failed with the engine's own message. is_given_up: no further attempt until try_start().
    virtual void on_start_failed(const std::string& message, bool is_given_up) = 0;
  };

  // settings: live longer.
  EngineClient(const ModelSettings& settings, Events& events) : settings_(settings), events_(events) {}

  bool is_ready() const { return state_ == State::kReady; }
  // Whether requests may wait for it. In kRefusing this makes a new attempt if the last was long enough ago.
  bool try_start(Clock::time_point now);
  const std::string& last_start_error() const { return start_error_; }

  // For poll(): the socket (-1: none), the events to wait for, and when service() must run without any.
  int fd() const { return process_ ? process_->fd() : -1; }
  short poll_events() const;
  Clock::time_point deadline() const { return wake_at_; }
  // Reads, writes, and moves on where time or the peer demand it. events: what poll() returned for fd().
  void service(short events, Clock::time_point now);

  // Only when ready. Encodes at once; what the socket does not take now goes out in service().
  void send(const wire::RequestsFrame& frame);

  // Ends the engine and waits for it, a few seconds at most.
  void stop();

 private:
  enum class State { kIdle, kStarting, kReady, kEnding, kBackoff, kRefusing };

  void start(Clock::time_point now);
  void read_frames(Clock::time_point now);  // what cannot be read, or handled, ends the connection
  void read_frames_once(Clock::time_point now);
  void handle_frame(wire::FrameType type, std::string_view payload, Clock::time_point now);
  void flush();
  void lose(const std::string& why, Clock::time_point now);  // -> kEnding
  void finish_ending(Clock::time_point now, const std::string& exit);
  void start_failed(const std::string& message, Clock::time_point now);

  const ModelSettings& settings_;
  Events& events_;
  std::string loaded_;  // wire::ReadyFrame::loaded of the engine before this one; "": it is the first
  State state_ = State::kIdle;
  std::unique_ptr<ChildProcess> process_;
  Clock::time_point wake_at_ = Clock::time_point::max();
  Clock::time_point started_at_{};  // the last attempt
  Clock::time_point noted_at_{};    // kStarting: when the log last said so
  Clock::time_point kill_at_{};     // kEnding: when patience ends

  bool was_ready_ = false;     // the engine in kEnding had been ready
  std::string loss_;           // why we gave the connection up; empty: end of file
  std::string start_error_;    // of the last failed start
  int num_failed_starts_ = 0;  // in a row

  std::vector<char> in_;  // bytes read: [in_begin_, in_end_)
  size_t in_begin_ = 0;
  size_t in_end_ = 0;
  std::string out_;  // bytes to write begin at out_begin_
  size_t out_begin_ = 0;
  wire::ReadyFrame ready_frame_;
  StepOutputs step_;
};

}  // namespace quire::triton
