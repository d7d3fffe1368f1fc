#include "socket_io.h"

#include <sys/socket.h>

#include <cerrno>

namespace quire::engine {

bool read_exactly(int fd, std::span<char> buffer) {
  size_t done = 0;
  while (done < buffer.size()) {
    const ssize_t n = ::recv(fd, buffer.data() + done, buffer.size() - done, 0);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0 || errno != EINTR) {
      return false;
    }
  }
  return true;
}

std::optional<size_t> write(int fd, std::string_view bytes, bool may_wait) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::send(fd, bytes.data() + done, bytes.size() - done,
                             may_wait ? MSG_NOSIGNAL : MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0) {
      done += static_cast<size_t>(n);
    } else if (!may_wait && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      break;
    } else if (errno != EINTR) {
      return std::nullopt;
    }
  }
  return done;
}

}  // namespace quire::engine
