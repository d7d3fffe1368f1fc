// What the Triton backend checks of a config.pbtxt, for those who check one without a server.
#include "bindings.h"
#include "triton/model_settings.h"

namespace quire::bindings {

void bind_model_config(pybind11::module_& m) {
  m.def(
      "check_model_config",
      [](std::string_view config) {
        triton::ModelSettings settings;
        triton::read_model_config(triton::Json::parse(config), settings);
      },
      pybind11::arg("config"),
      "Refuses, as at load, what a model of our backend cannot have; `config` is config.pbtxt as JSON.");
}

}  // namespace quire::bindings
