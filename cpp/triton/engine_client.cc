#include "engine_client.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "api.h"

namespace quire::triton {

namespace {

using namespace std::chrono_literals;

constexpr int kMaxFailedStarts = 3;
constexpr auto kRetryPause = 5s;       // between attempts once starts were given up
constexpr auto kCrashLoopUptime = 5s;  // an engine that lived shorter is started again after a pause
constexpr auto kCrashLoopPause = 1s;
constexpr auto kExitPatience = 5s;  // for the exit status after the end of file; then SIGKILL
constexpr auto kExitPoll = 5ms;
constexpr auto kExitCheck = 1s;     // a helper of a dead engine may hold the socket open
constexpr auto kLoadingNote = 30s;  // how often a slow start is mentioned in the log
constexpr size_t kReadSize = 1 << 18;

}  // namespace

bool EngineClient::try_start(Clock::time_point now) {
  if (state_ == State::kIdle || (state_ == State::kRefusing && now >= started_at_ + kRetryPause)) start(now);
  return state_ != State::kRefusing;
}

void EngineClient::start(Clock::time_point now) {
  started_at_ = now;
  was_ready_ = false;
  loss_.clear();
  in_begin_ = in_end_ = 0;
  out_.clear();
  out_begin_ = 0;
  try {
    std::vector<std::string> arguments{"--config", settings_.engine_config.string()};
    if (!loaded_.empty()) arguments.insert(arguments.end(), {"--loaded", loaded_});
    process_ = std::make_unique<ChildProcess>("the engine", settings_.python, settings_.engine_module,
                                              arguments, settings_.engine_settings);
  } catch (const std::exception& error) {
    start_failed(error.what(), now);
    return;
  }
  state_ = State::kStarting;
  noted_at_ = now;
  wake_at_ = now + kExitCheck;
}

short EngineClient::poll_events() const {
  return static_cast<short>(POLLIN | (out_begin_ < out_.size() ? POLLOUT : 0));
}

void EngineClient::service(short events, Clock::time_point now) {
  const bool is_connected = state_ == State::kStarting || state_ == State::kReady;
  if (is_connected && (events & ~POLLOUT) != 0) read_frames(now);
  if (state_ == State::kReady) flush();
  if (now < wake_at_) return;
  switch (state_) {
    case State::kStarting:
    case State::kReady:
      wake_at_ = now + kExitCheck;
      if (process_->poll_exit()) {
        lose("", now);
      } else if (state_ == State::kStarting && now >= noted_at_ + kLoadingNote) {
        QUIRE_LOG(INFO, "the engine (process " + std::to_string(process_->pid()) + ") is still starting");
        noted_at_ = now;
      }
      break;
    case State::kEnding:
      if (const auto exit = process_->poll_exit()) {
        finish_ending(now, *exit);
      } else {
        if (now >= kill_at_) process_->signal(SIGKILL);
        wake_at_ = now + kExitPoll;
      }
      break;
    case State::kBackoff:
      start(now);
      break;
    default:
      wake_at_ = Clock::time_point::max();
  }
}

void EngineClient::read_frames(Clock::time_point now) {
  try {
    read_frames_once(now);
  } catch (const std::exception& error) {
    lose(error.what(), now);
  }
}

void EngineClient::read_frames_once(Clock::time_point now) {
  // One read at a time: the owner has more to do than to listen to an engine that talks faster than clients
  // read.
  if (in_begin_ > 0) {
    std::memmove(in_.data(), in_.data() + in_begin_, in_end_ - in_begin_);
    in_end_ -= in_begin_;
    in_begin_ = 0;
  }
  if (in_.size() < in_end_ + kReadSize) in_.resize(in_end_ + kReadSize);
  const ssize_t num_read = recv(process_->fd(), in_.data() + in_end_, in_.size() - in_end_, 0);
  if (num_read < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (num_read <= 0) return lose("", now);
  in_end_ += static_cast<size_t>(num_read);
  while (in_end_ - in_begin_ >= wire::kHeaderSize && process_->fd() >= 0) {
    const char* begin = in_.data() + in_begin_;
    const auto header =
        wire::parse_header(std::span<const char, wire::kHeaderSize>(begin, wire::kHeaderSize));
    const size_t frame_size = wire::kHeaderSize + header.payload_size;
    if (in_end_ - in_begin_ < frame_size) break;
    in_begin_ += frame_size;
    handle_frame(header.type, {begin + wire::kHeaderSize, header.payload_size}, now);
  }
}

void EngineClient::handle_frame(wire::FrameType type, std::string_view payload, Clock::time_point now) {
  if (type == wire::FrameType::kStep && state_ == State::kReady) {
    wire::decode_step(payload, step_);
    events_.on_step(step_);
  } else if (type == wire::FrameType::kReady && state_ == State::kStarting) {
    wire::decode_ready(payload, ready_frame_);
    events_.on_ready(ready_frame_);
    loaded_ = ready_frame_.loaded;
    state_ = State::kReady;
    num_failed_starts_ = 0;
  } else if (type == wire::FrameType::kStartError && state_ == State::kStarting) {
    lose(std::string(payload), now);
  } else {
    throw Error("wire: a frame of type " + std::to_string(static_cast<int>(type)) +
                " does not belong here; the engine broke the protocol");
  }
}

void EngineClient::send(const wire::RequestsFrame& frame) {
  wire::encode(frame, out_);
  flush();
}

void EngineClient::flush() {
  while (out_begin_ < out_.size()) {
    const ssize_t sent =
        ::send(process_->fd(), out_.data() + out_begin_, out_.size() - out_begin_, MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
      // An engine that is slow to read never empties it: what it has read must not pile up.
      if (2 * out_begin_ > out_.size()) {
        out_.erase(0, out_begin_);
        out_begin_ = 0;
      }
      return;
    }
    if (sent < 0) break;  // the reading side will find the end, after what the engine said last
    out_begin_ += static_cast<size_t>(sent);
  }
  out_.clear();
  out_begin_ = 0;
}

void EngineClient::lose(const std::string& why, Clock::time_point now) {
  was_ready_ = state_ == State::kReady;
  loss_ = why;
  process_->close_socket();
  state_ = State::kEnding;
  wake_at_ = now;
  kill_at_ = now + kExitPatience;
}

void EngineClient::finish_ending(Clock::time_point now, const std::string& exit) {
  process_.reset();
  if (!was_ready_) {
    start_failed(loss_.empty()
                     ? "the engine " + exit + " before it was ready; its own output is in the server's log"
                     : loss_,
                 now);
    return;
  }
  const bool is_crash_loop = now - started_at_ < kCrashLoopUptime;
  state_ = State::kBackoff;
  wake_at_ = is_crash_loop ? now + kCrashLoopPause : now;
  events_.on_lost(loss_.empty() ? exit : exit + " after an error: " + loss_);
}

void EngineClient::start_failed(const std::string& message, Clock::time_point now) {
  start_error_ = message;
  ++num_failed_starts_;
  const bool is_given_up = num_failed_starts_ >= kMaxFailedStarts;
  state_ = is_given_up ? State::kRefusing : State::kBackoff;
  wake_at_ = is_given_up ? Clock::time_point::max() : now + num_failed_starts_ * kCrashLoopPause;
  events_.on_start_failed(message, is_given_up);
}

void EngineClient::stop() {
  if (process_) process_->stop();
  process_.reset();
  state_ = State::kIdle;
  wake_at_ = Clock::time_point::max();
}

}  // namespace quire::triton
