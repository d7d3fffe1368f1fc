#include "exit_watch.h"

#include <signal.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <string>
#include <string_view>

namespace quire::triton::exit_watch {

namespace {

using namespace std::chrono_literals;

constexpr int kSignals[] = {SIGINT, SIGTERM};
constexpr auto kMargin = 1s;           // for the last answers to leave
constexpr auto kDefaultTimeout = 30s;  // Triton's

std::mutex mutex;  // guards what follows, but for what the handler reads
std::atomic<bool> is_armed{false};
struct sigaction servers_own[std::size(kSignals)];
std::atomic<void (*)(int)> handlers[std::size(kSignals)];  // of these
std::atomic<int64_t> asked_ns{0};                          // steady clock; 0: not asked

void note_and_pass_on(int number) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  int64_t not_yet = 0;
  asked_ns.compare_exchange_strong(not_yet, now.tv_sec * int64_t{1'000'000'000} + now.tv_nsec);
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    if (kSignals[i] == number) handlers[i].load()(number);
  }
}

bool is_tritonserver() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).filename() == "tritonserver";
}

std::chrono::milliseconds exit_timeout() {
  constexpr std::string_view kOption = "--exit-timeout-secs";
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string argument;
  bool is_value_next = false;
  int64_t seconds = std::chrono::seconds(kDefaultTimeout).count();
  while (std::getline(file, argument, '\0')) {
    std::string_view value;
    if (is_value_next) {
      value = argument;
    } else if (argument.starts_with(kOption) && argument.substr(kOption.size(), 1) == "=") {
      value = std::string_view(argument).substr(kOption.size() + 1);
    }
    is_value_next = argument == kOption;
    std::from_chars(value.data(), value.data() + value.size(), seconds);  // no number: leaves it as it is
  }
  return std::chrono::seconds(std::clamp<int64_t>(seconds, 0, 1'000'000));
}

}  // namespace

void arm() {
  if (is_armed) return;
  const std::lock_guard lock(mutex);
  static const bool is_wanted = is_tritonserver();
  if (is_armed || !is_wanted) return;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    if (sigaction(kSignals[i], nullptr, &servers_own[i]) != 0) return;
    const bool is_plain = (servers_own[i].sa_flags & SA_SIGINFO) == 0;
    const auto handler = servers_own[i].sa_handler;
    if (!is_plain || handler == SIG_DFL || handler == SIG_IGN) return;
    handlers[i] = handler;
  }
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    struct sigaction ours = servers_own[i];
    ours.sa_handler = note_and_pass_on;
    sigaction(kSignals[i], &ours, nullptr);
  }
  is_armed = true;
}

void disarm() {
  const std::lock_guard lock(mutex);
  if (!is_armed) return;
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    struct sigaction current{};
    sigaction(kSignals[i], nullptr, &current);
    if (current.sa_handler == note_and_pass_on) sigaction(kSignals[i], &servers_own[i], nullptr);
  }
  is_armed = false;
}

std::optional<std::chrono::steady_clock::time_point> last_moment() {
  const int64_t asked = asked_ns;
  if (asked == 0) return std::nullopt;
  static const std::chrono::milliseconds patience = exit_timeout();
  const std::chrono::steady_clock::time_point asked_at{std::chrono::nanoseconds(asked)};
  return asked_at + patience - std::min<std::chrono::milliseconds>(kMargin, patience / 2);
}

}  // namespace quire::triton::exit_watch
