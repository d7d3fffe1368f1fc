#include <pybind11/native_enum.h>

#include "bind_members.h"
#include "bindings.h"
#include "quire/nearest_name.h"
#include "quire/sampling.h"

namespace quire::bindings {

namespace py = pybind11;

void bind_sampling(py::module_& m) {
  py::class_<SamplingParams> params(m, "SamplingParams",
                                    "What a request may ask; checked by EngineCore.add_request.");
  def_keywords<SamplingParams>(params);
  def_members<SamplingParams>(params);

  m.def("validate_together", &validate_together, py::arg("params"),
        "Refuses values that are good alone and do not go together.");
  m.def(
      "did_you_mean",
      [](std::string_view name, const std::vector<std::string_view>& known) {
        return did_you_mean(name, known);
      },
      py::arg("name"), py::arg("known"),
      "What an error says about an unknown name: the most like one, or nothing.");

  py::native_enum<FinishReason>(m, "FinishReason", "enum.IntEnum",
                                "Why a request ended; str() of a Release's is its name.")
      .value("NONE", FinishReason::kNone)
      .value("STOP", FinishReason::kStop)
      .value("LENGTH", FinishReason::kLength)
      .value("CANCELLED", FinishReason::kCancelled)
      .value("ERROR", FinishReason::kError)
      .value("DEADLINE", FinishReason::kDeadline)
      .finalize();
}

}  // namespace quire::bindings
