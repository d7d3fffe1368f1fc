// send() that loses no message to an HTTP thread.
//
// tritonserver's HTTP front end (libevhtp) tells a connection's thread of each event of a stream by a small
// message through a socket pair of the process, which holds about 277 of them. When that thread is busy, with
// another client's large body say, and the pair is full, libevhtp drops the message: the stream then ends
// with that many events missing and no error, or never ends. Here a message that finds the pair full waits in
// a queue instead, in order, and a thread moves it on when there is room. The sender never blocks: it may
// hold locks that the HTTP thread needs.
//
// Our detokenizer asks whether its message waits (quire_guard_after_delivery), and acknowledges a chunk only
// when it does not any more. So a stream has at most one message in the queue, and tokens that come meanwhile
// merge into the next event.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <list>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "guard.h"
#include "next.h"

namespace {

using Send = ssize_t(int, const void*, size_t, int);

constexpr size_t kMaxMessageSize = 64;  // libevhtp's have 24 bytes

ssize_t send_on(int fd, const void* bytes, size_t size, int flags) {
  static Send* const send = quire::guard::next<Send>("send");
  return send(fd, bytes, size, flags);
}

bool is_full(ssize_t sent) { return sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK); }

int option(int fd, int name) {
  int value = -1;
  socklen_t size = sizeof(value);
  return getsockopt(fd, SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
}

// One end of a non-blocking stream pair that this process made for itself.
bool is_own_pair(int fd) {
  if (option(fd, SO_DOMAIN) != AF_UNIX || option(fd, SO_TYPE) != SOCK_STREAM) return false;
  if ((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0) return false;
  ucred peer{};
  socklen_t size = sizeof(peer);
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.pid == getpid();
}

struct Message {
  uint64_t number;  // in the order of waiting
  unsigned char bytes[kMaxMessageSize];
  size_t size;
  void (*delivered)(void*) = nullptr;
  void* argument = nullptr;
};

// The messages to one socket, and a descriptor of ours for it: the sender may close its own, and get the same
// number for another socket. Where the process has no descriptor left, the sender's own has to do.
struct Queue {
  explicit Queue(int sender_fd)
      : own_fd(fcntl(sender_fd, F_DUPFD_CLOEXEC, 0)), fd(own_fd < 0 ? sender_fd : own_fd) {}
  ~Queue() {
    if (own_fd >= 0) close(own_fd);
  }
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  const int own_fd;
  const int fd;
  std::list<Message> messages;
};

std::atomic<size_t> num_waiting{0};  // messages, over all sockets
// Message::number of this thread's last send(); 0: it did not have to wait.
thread_local uint64_t last_waiting = 0;

// The messages that wait, by socket, and the thread that moves them on. Made when the first message has to
// wait, never destroyed: threads of the server send until the process is gone.
class Queues {
 public:
  static Queues& instance() {
    static Queues& queues = *new Queues;
    return queues;
  }

  // Queues a message where others of its socket wait, or the socket is full. Else what send() says, with its
  // errno.
  ssize_t send(int fd, const void* bytes, size_t size) {
    const std::lock_guard lock(mutex_);
    struct stat file{};
    fstat(fd, &file);
    auto found = queues_.find(file.st_ino);
    if (found == queues_.end()) {
      const ssize_t sent = send_on(fd, bytes, size, 0);
      if (!is_full(sent)) return sent;
      if (!is_own_pair(fd)) {
        errno = EAGAIN;
        return sent;
      }
      found = queues_.try_emplace(file.st_ino, fd).first;
    }
    Message message{.number = ++last_number_, .bytes = {}, .size = size};
    std::memcpy(message.bytes, bytes, size);
    found->second.messages.push_back(message);
    ++num_waiting;
    last_waiting = message.number;
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(event_fd_, &one, sizeof(one));
    return static_cast<ssize_t>(size);
  }

  bool after_delivery(uint64_t number, void (*delivered)(void*), void* argument) {
    const std::lock_guard lock(mutex_);
    for (auto& [socket, queue] : queues_) {
      // It is one of the last: the caller has just sent it.
      for (auto message = queue.messages.rbegin(); message != queue.messages.rend(); ++message) {
        if (message->number < number) break;
        if (message->number != number) continue;
        message->delivered = delivered;
        message->argument = argument;
        return true;
      }
    }
    return false;
  }

 private:
  Queues() : event_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    std::thread([this] { run(); }).detach();
  }

  void run() {
    std::vector<pollfd> polled;
    std::list<Message> moved;
    while (true) {
      polled.assign(1, {event_fd_, POLLIN, 0});
      {
        const std::lock_guard lock(mutex_);
        for (const auto& [socket, queue] : queues_) polled.push_back({queue.fd, POLLOUT, 0});
      }
      // Without a descriptor for the event nothing wakes this thread.
      poll(polled.data(), polled.size(), event_fd_ < 0 ? 10 : -1);
      uint64_t count = 0;
      [[maybe_unused]] const ssize_t num_read = read(event_fd_, &count, sizeof(count));
      moved.clear();
      {
        const std::lock_guard lock(mutex_);
        for (auto it = queues_.begin(); it != queues_.end();) {
          move_on(it->second, moved);
          it = it->second.messages.empty() ? queues_.erase(it) : std::next(it);
        }
      }
      for (const Message& message : moved) {
        if (message.delivered != nullptr) message.delivered(message.argument);
      }
    }
  }

  static void move_on(Queue& queue, std::list<Message>& moved) {
    while (!queue.messages.empty()) {
      const Message& message = queue.messages.front();
      // Any other error is that of a pair whose other end is closed.
      if (is_full(send_on(queue.fd, message.bytes, message.size, MSG_NOSIGNAL))) return;
      moved.splice(moved.end(), queue.messages, queue.messages.begin());
      --num_waiting;
    }
  }

  std::mutex mutex_;               // guards queues_ and last_number_
  std::map<ino_t, Queue> queues_;  // by socket; none is empty
  uint64_t last_number_ = 0;
  const int event_fd_;
};

}  // namespace

QUIRE_GUARD_EXPORT ssize_t send(int fd, const void* bytes, size_t size, int flags) {
  if (size > kMaxMessageSize || flags != 0) return send_on(fd, bytes, size, flags);
  last_waiting = 0;
  if (num_waiting.load() == 0) {
    const ssize_t sent = send_on(fd, bytes, size, flags);
    if (!is_full(sent)) return sent;
  }
  try {
    return Queues::instance().send(fd, bytes, size);
  } catch (const std::exception&) {  // no memory, or no thread: as without the guard
    errno = EAGAIN;
    return -1;
  }
}

QUIRE_GUARD_EXPORT void quire_guard_forget() { last_waiting = 0; }

QUIRE_GUARD_EXPORT bool quire_guard_after_delivery(void (*delivered)(void*), void* argument) {
  const uint64_t number = std::exchange(last_waiting, 0);
  return number != 0 && Queues::instance().after_delivery(number, delivered, argument);
}
