// libquire_guard.so: preloaded into tritonserver, it mends four things that the server does not do itself.
//
//   messages.cc        no message to an HTTP thread is dropped, so that no event of a stream is lost
//   readiness.cc       the server's readiness follows what our backend says of its models
//   stacks.cc          HTTP threads have stacks on which deeply nested JSON is an error instead of the end
//   classification.cc  a request for the largest values of a string output is an error instead of the end
//
// It interposes functions of libc and of libtritonserver that the program `tritonserver` imports. Where a
// server does not call them, it does nothing. This header is also our backend's view of it: the functions are
// looked up in the process, and are not there without the guard.
#pragma once

#include <cstdint>

struct TRITONSERVER_Server;

extern "C" {

// messages.cc: forgets what the calling thread has sent so far.
using quire_guard_forget_t = void();
// Whether the last message that the calling thread has sent since then still waits outside an HTTP thread's
// full socket. If so, delivered(argument) is called once it is inside, on a thread of the guard's, and must
// not block.
using quire_guard_after_delivery_t = bool(void (*delivered)(void*), void* argument);

// readiness.cc: sets who is asked whether a model (null: every model of ours) of a server serves, where the
// server says that it is ready. Null: no one.
using quire_guard_is_serving_t = bool(TRITONSERVER_Server* server, const char* model, int64_t version);
using quire_guard_ask_t = void(quire_guard_is_serving_t* is_serving);
}
