// Whole reads and writes on a stream socket: interrupted calls go on, a vanished peer is a result and no
// signal.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace quire::engine {

// Fills `buffer`; false when the peer is gone before it is full.
bool read_exactly(int fd, std::span<char> buffer);

// Sends the bytes, all of them or, unless it may wait, what the socket takes at once. Returns how many that
// were; nothing when the peer is gone.
std::optional<size_t> write(int fd, std::string_view bytes, bool may_wait);

}  // namespace quire::engine
