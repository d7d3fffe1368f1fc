// When the server was asked to end, so that open requests get an error before its patience is over.
//
// Triton tells no backend. Until its exit timeout is over, tritonserver 2.51 waits for its HTTP connections
// first and then for requests in flight; then it cuts what is open, and its gRPC front end waits for answers
// that never come. So this listens for the signals that end it: our handler notes the time and then calls
// tritonserver's own. In a process that is not tritonserver it does nothing.
#pragma once

#include <chrono>
#include <optional>

namespace quire::triton::exit_watch {

// Begins to listen, once the server has set its own handlers: to be called now and then until then. Thread
// safe.
void arm();
// Gives the signals back to the server.
void disarm();

// The moment by which requests must be answered: a little before the exit timeout (the option
// --exit-timeout-secs) is over. Nothing while the server is not asked to end.
std::optional<std::chrono::steady_clock::time_point> last_moment();

}  // namespace quire::triton::exit_watch
