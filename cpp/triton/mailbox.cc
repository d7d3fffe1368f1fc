#include "mailbox.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "quire/error.h"

namespace quire::triton {

namespace {

// Rounded up, so that a wait never ends before its deadline; -1 is forever.
int timeout_ms(std::chrono::steady_clock::time_point deadline) {
  using namespace std::chrono;
  if (deadline == steady_clock::time_point::max()) return -1;
  const auto left = ceil<milliseconds>(deadline - steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
}

}  // namespace

Mailbox::Mailbox() : event_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (event_fd_ < 0) throw Error(std::string("cannot make an event: ") + std::strerror(errno));
}

Mailbox::~Mailbox() { ::close(event_fd_); }

bool Mailbox::post(const std::function<void(Mail&)>& add) {
  {
    const std::lock_guard lock(mutex_);
    if (is_closed_) return false;
    add(mail_);
    if (!std::exchange(is_owner_asleep_, false)) return true;
  }
  const uint64_t one = 1;
  // Cannot fail: the counter is far from its limit, and a signal does not interrupt a non-blocking write.
  [[maybe_unused]] const ssize_t written = write(event_fd_, &one, sizeof(one));
  return true;
}

short Mailbox::wait(int fd, short events, std::chrono::steady_clock::time_point deadline, Mail& mail) {
  int timeout = timeout_ms(deadline);
  {
    const std::lock_guard lock(mutex_);
    is_owner_asleep_ = mail_.client_requests.empty() && mail_.feedback.empty() && mail_.calls.empty() &&
                       !mail_.stop && !mail_.give_up;
    if (!is_owner_asleep_) timeout = 0;
  }
  // poll() ignores negative descriptors.
  pollfd polled[2] = {{event_fd_, POLLIN, 0}, {fd, events, 0}};
  if (poll(polled, 2, timeout) > 0 && polled[0].revents != 0) {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t num_read = read(event_fd_, &count, sizeof(count));
  }
  const std::lock_guard lock(mutex_);
  is_owner_asleep_ = false;
  std::swap(mail_, mail);
  return polled[1].revents;
}

bool Mailbox::close() {
  const std::lock_guard lock(mutex_);
  is_closed_ = mail_.client_requests.empty() && mail_.calls.empty();
  return is_closed_;
}

}  // namespace quire::triton
