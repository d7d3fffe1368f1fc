// Our side of libquire_guard.so (cpp/guard), which is preloaded into tritonserver. Without it nothing here
// does anything.
#pragma once

#include <functional>

#include "abi.h"

namespace quire::triton::server_guard {

bool is_loaded();

// Sends with send(); then runs `then`: at once, or, where what was sent waits outside a busy HTTP thread,
// after it got there, on a thread that `then` must not block. Returns whether it waits.
bool run_after_delivery(const std::function<void()>& send, std::function<void()> then);

// Sets who says whether a model (null: all of ours) serves, where the server is asked for its readiness.
void ask_readiness(bool (*is_serving)(TRITONSERVER_Server* server, const char* model, int64_t version));

}  // namespace quire::triton::server_guard
