#include "readiness.h"

#include <algorithm>
#include <string>

#include "api.h"
#include "generation.h"
#include "json.h"
#include "registry.h"
#include "worker_keeper.h"

namespace quire::triton {

namespace {

// For models that name models: the server does not look for circles in our parameters.
constexpr int kMaxDepth = 8;

bool serves(TRITONSERVER_Server* server, const std::string& model, int64_t version, int depth) {
  for (const auto& generation : registry::loaded()) {
    if (generation->settings().name == model) return generation->is_serving();
  }
  for (const auto& tokenizer : registry::loaded_tokenizers()) {
    if (tokenizer->settings.name == model) return tokenizer->is_serving();
  }
  if (depth == kMaxDepth) return true;
  TRITONSERVER_Message* message = nullptr;
  check(TRITONSERVER_ServerModelConfig(server, model.c_str(), version, 1, &message));
  const Json config = Json::parse(take_json(message));
  for (const Json& step : config["ensemble_scheduling"]["step"].as<Json::Array>()) {
    if (!serves(server, step["model_name"].as<std::string>(), -1, depth + 1)) return false;
  }
  const Json& parameters = config["parameters"];
  if (config["backend"].as<std::string>() != "quire" ||
      parameters["role"]["string_value"].as<std::string>() != "unary") {
    return true;
  }
  for (const char* parameter : {"generation_model", "tokenizer_model"}) {
    const std::string name = parameters[parameter]["string_value"].as<std::string>();
    if (!name.empty() && !serves(server, name, -1, depth + 1)) return false;
  }
  return true;
}

}  // namespace

bool is_serving(TRITONSERVER_Server* server, const char* model, int64_t version) {
  if (model != nullptr) {
    try {
      return serves(server, model, version, 0);
    } catch (const std::exception& error) {  // no such model any more
      return false;
    }
  }
  const auto serve = [](const auto& models) {
    return std::all_of(models.begin(), models.end(), [](const auto& one) { return one->is_serving(); });
  };
  return serve(registry::loaded()) && serve(registry::loaded_tokenizers());
}

}  // namespace quire::triton
