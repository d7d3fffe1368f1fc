// Reads the settings of a model from the server that loads it.
#include <fstream>
#include <iterator>
#include <string>

#include "api.h"
#include "model_settings.h"

namespace quire::triton {

std::string read_settings_file(const std::filesystem::path& path) {
  constexpr uintmax_t kMaxSize = 1 << 20;
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw Error(path.string() + ": no such file; allowed: a JSON file with engine settings");
  }
  if (!std::filesystem::is_regular_file(status)) {  // a FIFO would hang the load
    throw Error(path.string() + ": got no regular file; allowed: a JSON file with engine settings");
  }
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (!error && size > kMaxSize) {
    throw Error(path.string() + ": got " + std::to_string(size) + " bytes; allowed: at most " +
                std::to_string(kMaxSize));
  }
  std::ifstream file(path, std::ios::binary);
  std::string content(std::istreambuf_iterator<char>(file), {});
  if (error || !file) throw Error(path.string() + ": cannot be read");
  return content;
}

ModelSettings read_model_settings(TRITONBACKEND_Model* model) {
  ModelSettings settings;
  const char* name = nullptr;
  check(TRITONBACKEND_ModelName(model, &name));
  settings.name = name;
  check(TRITONBACKEND_ModelVersion(model, &settings.version));

  TRITONBACKEND_ArtifactType artifact_type{};
  const char* location = nullptr;
  check(TRITONBACKEND_ModelRepository(model, &artifact_type, &location));
  settings.folder = std::filesystem::path(location).lexically_normal();
  if (!settings.folder.has_filename()) settings.folder = settings.folder.parent_path();  // "generation/"
  settings.engine_config = settings.folder / std::to_string(settings.version) / "model.json";

  TRITONSERVER_Message* message = nullptr;
  check(TRITONBACKEND_ModelConfig(model, 1, &message));
  read_model_config(Json::parse(take_json(message)), settings);
  if (settings.role == Role::kGeneration)
    settings.engine_settings = read_settings_file(settings.engine_config);
  return settings;
}

}  // namespace quire::triton
