#include "registry.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "api.h"
#include "generation.h"

namespace quire::triton::registry {

namespace {

struct Loaded {
  std::mutex mutex;
  std::vector<std::shared_ptr<Generation>> models;  // in the order of loading; a handful at most
  std::vector<std::weak_ptr<Generation>> all;       // these, and those that are being unloaded
};

// Never destroyed: where the server exits without unloading its models, nothing of ours may run any more.
Loaded& loaded() {
  static Loaded& instance = *new Loaded;
  return instance;
}

}  // namespace

void add(const std::shared_ptr<Generation>& generation) {
  const std::lock_guard lock(loaded().mutex);
  loaded().models.push_back(generation);
  std::erase_if(loaded().all, [](const auto& model) { return model.expired(); });
  loaded().all.push_back(generation);
}

void remove(const Generation& generation) {
  const std::lock_guard lock(loaded().mutex);
  std::erase_if(loaded().models, [&](const auto& model) { return model.get() == &generation; });
}

void give_up_all() {
  std::vector<std::shared_ptr<Generation>> all;
  {
    const std::lock_guard lock(loaded().mutex);
    for (const auto& model : loaded().all) all.push_back(model.lock());
  }
  for (const auto& model : all) {
    if (model) model->give_up();
  }
}

std::shared_ptr<Generation> find(uint64_t id) {
  const std::lock_guard lock(loaded().mutex);
  for (const auto& model : loaded().models) {
    if (model->id() == id) return model;
  }
  return nullptr;
}

std::shared_ptr<Generation> find(const std::string& name) {
  const std::lock_guard lock(loaded().mutex);
  const auto& models = loaded().models;
  const auto found =
      std::find_if(models.rbegin(), models.rend(), [&](const auto& model) { return model->name() == name; });
  if (found == models.rend()) {
    throw ServerError(
        TRITONSERVER_ERROR_UNAVAILABLE,
        "generation_model: no model '" + name + "' of backend quire with role generation is loaded");
  }
  return *found;
}

}  // namespace quire::triton::registry
