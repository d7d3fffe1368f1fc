// The readiness that tritonserver reports, over HTTP, gRPC and gRPC's health service: ready where the server
// says so and our backend says that its engines serve. Liveness stays the server's own.
#include <atomic>

#include "guard.h"
#include "next.h"

struct TRITONSERVER_Error;

namespace {

std::atomic<quire_guard_is_serving_t*> is_serving{nullptr};

void also_serving(TRITONSERVER_Server* server, const char* model, int64_t version, bool* ready) {
  auto* const ask = is_serving.load();
  if (*ready && ask != nullptr) *ready = ask(server, model, version);
}

}  // namespace

QUIRE_GUARD_EXPORT void quire_guard_ask(quire_guard_is_serving_t* who) { is_serving = who; }

QUIRE_GUARD_EXPORT TRITONSERVER_Error* TRITONSERVER_ServerIsReady(TRITONSERVER_Server* server, bool* ready) {
  using Function = TRITONSERVER_Error*(TRITONSERVER_Server*, bool*);
  static Function* const is_ready = quire::guard::next<Function>("TRITONSERVER_ServerIsReady");
  TRITONSERVER_Error* const error = is_ready(server, ready);
  if (error == nullptr) also_serving(server, nullptr, -1, ready);
  return error;
}

QUIRE_GUARD_EXPORT TRITONSERVER_Error* TRITONSERVER_ServerModelIsReady(TRITONSERVER_Server* server,
                                                                       const char* model, int64_t version,
                                                                       bool* ready) {
  using Function = TRITONSERVER_Error*(TRITONSERVER_Server*, const char*, int64_t, bool*);
  static Function* const is_ready = quire::guard::next<Function>("TRITONSERVER_ServerModelIsReady");
  TRITONSERVER_Error* const error = is_ready(server, model, version, ready);
  if (error == nullptr) also_serving(server, model, version, ready);
  return error;
}
