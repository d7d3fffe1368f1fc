#include "server_guard.h"

#include <dlfcn.h>

#include <memory>
#include <utility>

#include "../guard/guard.h"

namespace quire::triton::server_guard {

namespace {

template <class Function>
Function* find(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace

bool is_loaded() { return find<quire_guard_forget_t>("quire_guard_forget") != nullptr; }

bool run_after_delivery(const std::function<void()>& send, std::function<void()> then) {
  static auto* const forget = find<quire_guard_forget_t>("quire_guard_forget");
  static auto* const after_delivery = find<quire_guard_after_delivery_t>("quire_guard_after_delivery");
  if (forget == nullptr || after_delivery == nullptr) {
    send();
    then();
    return false;
  }
  forget();
  send();
  auto waiting = std::make_unique<std::function<void()>>(std::move(then));
  const auto run = [](void* function) {
    const std::unique_ptr<std::function<void()>> owned(static_cast<std::function<void()>*>(function));
    (*owned)();
  };
  if (after_delivery(run, waiting.get())) {
    waiting.release();
    return true;
  }
  (*waiting)();
  return false;
}

void ask_readiness(bool (*is_serving)(TRITONSERVER_Server* server, const char* model, int64_t version)) {
  if (auto* const ask = find<quire_guard_ask_t>("quire_guard_ask")) ask(is_serving);
}

}  // namespace quire::triton::server_guard
