#include "registry.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include "api.h"
#include "generation.h"

namespace quire::triton::registry {

namespace {

// In the order of loading; a handful at most.
template <class Model>
class Models {
 public:
  void add(const std::shared_ptr<Model>& model) {
    const std::lock_guard lock(mutex_);
    std::erase_if(models_, [](const auto& known) { return known.expired(); });
    models_.push_back(model);
  }
  std::vector<std::shared_ptr<Model>> all() {
    std::vector<std::shared_ptr<Model>> found;
    const std::lock_guard lock(mutex_);
    for (const auto& known : models_) {
      if (auto model = known.lock()) found.push_back(std::move(model));
    }
    return found;
  }

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<Model>> models_;
};

struct Loaded {
  std::atomic<bool> is_given_up = false;
  Models<Generation> generations;
  Models<TokenizerModel> tokenizers;
};

// Never destroyed: where the server exits without unloading its models, nothing of ours may run any more.
Loaded& state() {
  static Loaded& instance = *new Loaded;
  return instance;
}

}  // namespace

void add(const std::shared_ptr<Generation>& generation) { state().generations.add(generation); }

void add(const std::shared_ptr<TokenizerModel>& tokenizer) { state().tokenizers.add(tokenizer); }

void give_up_all() {
  state().is_given_up = true;
  for (const auto& model : state().generations.all()) model->give_up();
}

bool is_given_up() { return state().is_given_up; }

std::vector<std::shared_ptr<Generation>> loaded() {
  auto models = state().generations.all();
  std::erase_if(models, [](const auto& model) { return !model->is_loaded(); });
  return models;
}

std::vector<std::shared_ptr<TokenizerModel>> loaded_tokenizers() { return state().tokenizers.all(); }

std::shared_ptr<Generation> find(uint64_t id) {
  for (const auto& model : loaded()) {
    if (model->id() == id) return model;
  }
  return nullptr;
}

std::shared_ptr<Generation> find(const std::string& name, const std::filesystem::path& user) {
  std::shared_ptr<Generation> best;
  bool is_best_own = false;
  bool is_ambiguous = false;
  for (const auto& model : loaded()) {
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
