// Larger stacks for the server's HTTP threads, which read JSON by recursion: 8 MiB end between 20,000 and
// 50,000 nested lists, and the whole server with them.
//
// Also keeps the guard out of the server's children: what is preloaded into tritonserver is meant for it
// alone.
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "next.h"
#include "program.h"

namespace {

constexpr size_t kStackSize = size_t{1} << 30;  // of address space; memory is taken as far as a stack grows

__attribute__((constructor)) void leave_environment() {
  Dl_info info{};
  const char* const preload = getenv("LD_PRELOAD");
  if (preload == nullptr || dladdr(reinterpret_cast<void*>(&leave_environment), &info) == 0) return;
  std::string kept;
  std::string_view rest = preload;
  while (!rest.empty()) {
    const size_t end = rest.find_first_of(": ");
    const std::string_view library = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    if (library.empty() || library == info.dli_fname) continue;
    kept += (kept.empty() ? "" : ":") + std::string(library);
  }
  if (kept.empty()) {
    unsetenv("LD_PRELOAD");
  } else {
    setenv("LD_PRELOAD", kept.c_str(), 1);
  }
}

}  // namespace

QUIRE_GUARD_EXPORT int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                                      void* (*run)(void*), void* argument) {
  using Function = int(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static Function* const create = quire::guard::next<Function>("pthread_create");
  pthread_attr_t larger;
  // Threads that the program makes are HTTP threads; its libraries make all others.
  if (attributes == nullptr && quire::guard::is_in_program(__builtin_return_address(0)) &&
      pthread_attr_init(&larger) == 0) {
    int error = pthread_attr_setstacksize(&larger, kStackSize);
    if (error == 0) error = create(thread, &larger, run, argument);
    pthread_attr_destroy(&larger);
    if (error == 0) return 0;
  }
  return create(thread, attributes, run, argument);
}
