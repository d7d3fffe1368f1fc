#include "tokenizer_worker.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

namespace quire::triton {

namespace {

using namespace std::chrono_literals;

constexpr auto kTick = 20ms;           // how often watch() is called and the process looked at
constexpr auto kExitPatience = 500ms;  // for the exit status after the end of file; then SIGKILL
constexpr size_t kHeaderSize = 8;
constexpr size_t kReadSize = 1 << 16;
constexpr uint32_t kMaxPayload = 1u << 30;  // more is no answer but damage

}  // namespace

void begin_frame(TokenizerFrame type, std::string& frame) {
  frame.assign(sizeof(uint32_t), '\0');
  frame.append(reinterpret_cast<const char*>(&type), sizeof(type));
}

void end_frame(std::string& frame) {
  const auto size = static_cast<uint32_t>(frame.size() - kHeaderSize);
  std::memcpy(frame.data(), &size, sizeof(size));
}

TokenizerWorker::TokenizerWorker(const std::string& python, const std::string& module)
    : process_("the tokenizer", python, module, {"--parent", std::to_string(getpid())}) {}

bool TokenizerWorker::is_idle() {
  if (is_waiting_ || process_.poll_exit() || process_.is_stopped()) return false;
  pollfd waiting{process_.fd(), POLLIN, 0};
  return poll(&waiting, 1, 0) == 0;  // nothing to read: no end of file, no answer to nobody's request
}

std::optional<TokenizerWorker::Answer> TokenizerWorker::exchange(std::string_view frame, const Watch& watch) {
  is_waiting_ = true;
  while (true) {
    pollfd waiting{process_.fd(), static_cast<short>(frame.empty() ? POLLIN : POLLIN | POLLOUT), 0};
    const int num_ready = poll(&waiting, 1, std::chrono::milliseconds(kTick).count());
    if ((waiting.revents & POLLOUT) != 0) {
      const ssize_t sent = ::send(process_.fd(), frame.data(), frame.size(), MSG_NOSIGNAL);
      if (sent > 0) frame.remove_prefix(static_cast<size_t>(sent));
      if (sent < 0 && errno != EAGAIN && errno != EINTR) lose();
    }
    if ((waiting.revents & ~POLLOUT) != 0) {
      receive();
      if (auto answer = take_frame()) return answer;
    }
    if (num_ready == 0 && (process_.poll_exit() || process_.is_stopped())) lose();
    if (!watch()) return std::nullopt;
  }
}

void TokenizerWorker::receive() {
  std::array<char, kReadSize> buffer;
  const ssize_t num_read = recv(process_.fd(), buffer.data(), buffer.size(), 0);
  if (num_read > 0) {
    in_.append(buffer.data(), static_cast<size_t>(num_read));
  } else if (num_read == 0 || (errno != EAGAIN && errno != EINTR)) {
    lose();
  }
}

std::optional<TokenizerWorker::Answer> TokenizerWorker::take_frame() {
  if (in_.size() < kHeaderSize) return std::nullopt;
  uint32_t size = 0;
  Answer answer{};
  std::memcpy(&size, in_.data(), sizeof(size));
  std::memcpy(&answer.type, in_.data() + sizeof(size), sizeof(answer.type));
  if (size > kMaxPayload || in_.size() > kHeaderSize + size) {
    throw WorkerLost("broke the protocol");
  }
  if (in_.size() < kHeaderSize + size) return std::nullopt;
  answer.payload = in_.substr(kHeaderSize);
  in_.clear();
  is_waiting_ = false;
  return answer;
}

void TokenizerWorker::lose() {
  if (process_.is_stopped()) throw WorkerLost("was stopped by a signal");
  process_.close_socket();
  const auto deadline = std::chrono::steady_clock::now() + kExitPatience;
  while (!process_.poll_exit() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(1ms);
  throw WorkerLost(process_.poll_exit().value_or("closed its socket"));
}

}  // namespace quire::triton
