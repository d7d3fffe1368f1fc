// Reads the settings of a model from the server that loads it.
#include "api.h"
#include "model_settings.h"

namespace quire::triton {

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
  return settings;
}

}  // namespace quire::triton
