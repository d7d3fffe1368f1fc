// Whole reads and writes on a stream socket: interrupted calls go on, a vanished peer is a result and no
// signal.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace quire::engine {

// Fills `buffer`; false when the peer is gone before it is full.
bool read_exactly(int fd, std::span<char> buffer);

// Sends all bytes, waiting as long as it takes; false when the peer is gone.
bool write_all(int fd, std::string_view bytes);

// Sends what the socket takes without waiting and returns how many bytes that were; a vanished peer takes
// all.
size_t write_some(int fd, std::string_view bytes);

}  // namespace quire::engine
