// An unload waits until the server's threads have settled. The thread of a model's instance takes the
// instance off a list while it works for it, and puts it back a moment after it has said that it is done; an
// unload takes the last of that list without a look whether there is one. Where the machine is busy, one that
// follows a load or a request at once comes into that moment, and ends the server.
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <unordered_set>

#include "guard.h"
#include "next.h"

struct TRITONSERVER_Error;

namespace {

using UnloadFunction = TRITONSERVER_Error*(TRITONSERVER_Server*, const char*);

constexpr auto kLongest = std::chrono::milliseconds(500);  // for threads that never sleep

// The other threads of the process that run, or would if they had a core.
std::unordered_set<std::string> runnable_threads() {
  std::unordered_set<std::string> found;
  std::error_code ignored;
  const std::string self = std::to_string(gettid());
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task", ignored)) {
    std::ifstream file(task.path() / "stat");
    std::string stat;
    const std::string id = task.path().filename();
    // After the name, which may hold anything, comes the state.
    if (id != self && std::getline(file, stat) && stat.compare(stat.rfind(')'), 3, ") R") == 0)
      found.insert(id);
  }
  return found;
}

// Returns when each thread that is runnable now has been seen asleep.
void settle() {
  const auto deadline = std::chrono::steady_clock::now() + kLongest;
  auto busy = runnable_threads();
  while (!busy.empty() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const auto still = runnable_threads();
    std::erase_if(busy, [&](const std::string& id) { return !still.contains(id); });
  }
}

}  // namespace

QUIRE_GUARD_EXPORT TRITONSERVER_Error* TRITONSERVER_ServerUnloadModel(TRITONSERVER_Server* server,
                                                                      const char* model) {
  static UnloadFunction* const unload = quire::guard::next<UnloadFunction>("TRITONSERVER_ServerUnloadModel");
  settle();
  return unload(server, model);
}

QUIRE_GUARD_EXPORT TRITONSERVER_Error* TRITONSERVER_ServerUnloadModelAndDependents(
    TRITONSERVER_Server* server, const char* model) {
  static UnloadFunction* const unload =
      quire::guard::next<UnloadFunction>("TRITONSERVER_ServerUnloadModelAndDependents");
  settle();
  return unload(server, model);
}
