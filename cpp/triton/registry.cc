#include "registry.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <vector>

#include "api.h"
#include "generation.h"

namespace quire::triton::registry {

namespace {

struct Loaded {
  std::atomic<bool> is_given_up = false;
  std::mutex mutex;
  std::vector<std::shared_ptr<Generation>> models;  // in the order of loading; a handful at most
  std::vector<std::weak_ptr<Generation>> all;       // these, and those that are being unloaded
  std::vector<std::weak_ptr<TokenizerModel>> tokenizers;
};

// Never destroyed: where the server exits without unloading its models, nothing of ours may run any more.
Loaded& state() {
  static Loaded& instance = *new Loaded;
  return instance;
}

}  // namespace

void add(const std::shared_ptr<Generation>& generation) {
  const std::lock_guard lock(state().mutex);
  state().models.push_back(generation);
  std::erase_if(state().all, [](const auto& model) { return model.expired(); });
  state().all.push_back(generation);
}

void remove(const Generation& generation) {
  const std::lock_guard lock(state().mutex);
  std::erase_if(state().models, [&](const auto& model) { return model.get() == &generation; });
}

void give_up_all() {
  state().is_given_up = true;
  std::vector<std::shared_ptr<Generation>> all;
  {
    const std::lock_guard lock(state().mutex);
    for (const auto& model : state().all) all.push_back(model.lock());
  }
  for (const auto& model : all) {
    if (model) model->give_up();
  }
}

void add(const std::shared_ptr<TokenizerModel>& tokenizer) {
  const std::lock_guard lock(state().mutex);
  std::erase_if(state().tokenizers, [](const auto& model) { return model.expired(); });
  state().tokenizers.push_back(tokenizer);
}

std::vector<std::shared_ptr<TokenizerModel>> loaded_tokenizers() {
  std::vector<std::shared_ptr<TokenizerModel>> found;
  const std::lock_guard lock(state().mutex);
  for (const auto& model : state().tokenizers) {
    if (auto tokenizer = model.lock()) found.push_back(std::move(tokenizer));
  }
  return found;
}

std::vector<std::shared_ptr<Generation>> loaded() {
  const std::lock_guard lock(state().mutex);
  return state().models;
}

bool is_given_up() { return state().is_given_up; }

std::shared_ptr<Generation> find(uint64_t id) {
  const std::lock_guard lock(state().mutex);
  for (const auto& model : state().models) {
    if (model->id() == id) return model;
  }
  return nullptr;
}

std::shared_ptr<Generation> find(const std::string& name, const std::filesystem::path& user) {
  const std::lock_guard lock(state().mutex);
  std::shared_ptr<Generation> best;
  bool is_best_own = false;
  bool is_ambiguous = false;
  for (const auto& model : state().models) {
    if (model->settings().name != name) continue;
    const bool is_own = model->settings().folder.parent_path() == user.parent_path();
    if (best && is_best_own && !is_own) continue;
    const bool is_first = !best || is_own != is_best_own;
    if (is_first) {
      is_ambiguous = false;
    } else {
      is_ambiguous |= model->settings().folder != best->settings().folder;
    }
    if (is_first || model->settings().version >= best->settings().version) best = model;
    is_best_own = is_own;
  }
  if (!best) {
    throw ServerError(
        TRITONSERVER_ERROR_UNAVAILABLE,
        "generation_model: no model '" + name + "' of backend quire with role generation is loaded");
  }
  if (is_ambiguous) {
    throw ServerError(
        TRITONSERVER_ERROR_UNAVAILABLE,
        "generation_model: got '" + name +
            "', which several model repositories have; allowed: a model of this repository, or a name that "
            "one repository has");
  }
  return best;
}

}  // namespace quire::triton::registry
