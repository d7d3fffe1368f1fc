#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core_parts.h"
#include "quire/output_gate.h"
#include "quire/stop_matcher.h"

namespace quire::core_parts {
namespace {

// A matcher with its place in one text.
struct StopMatcherCursor {
  explicit StopMatcherCursor(const std::vector<std::string>& strings) : matcher(strings) {}

  // Reads on; returns [begin, end) of the first match in all text so far, and stops after it.
  std::optional<std::pair<uint64_t, uint64_t>> feed(std::string_view text) {
    for (char byte : text) {
      state = matcher.next(state, static_cast<uint8_t>(byte));
      ++num_bytes;
      if (const uint32_t length = matcher.match_length(state))
        return std::pair{num_bytes - length, num_bytes};
    }
    return std::nullopt;
  }

  StopMatcher matcher;
  StopMatcher::State state = StopMatcher::kStart;
  uint64_t num_bytes = 0;
};

}  // namespace

void bind_text(py::module_& m) {
  py::class_<StopMatcherCursor>(m, "StopMatcher")
      .def(py::init<const std::vector<std::string>&>(), py::arg("strings"))
      .def(
          "feed",
          [](StopMatcherCursor& self, const py::bytes& text) { return self.feed(std::string_view(text)); },
          py::arg("text"))
      .def_property_readonly(
          "hold_length", [](const StopMatcherCursor& self) { return self.matcher.hold_length(self.state); });

  const auto to_tuple = [](const OutputGate::Run& run) {
    return py::make_tuple(run.num_ids, run.num_text_ids, run.trim, run.is_first);
  };
  py::class_<OutputGate>(m, "OutputGate")
      .def(py::init([](const TokenTable& table, const SamplingParams& params, bool is_first) {
             return OutputGate(table, params, is_first, OpenText(), make_stop_matcher(params));
           }),
           py::arg("table"), py::arg("params"), py::arg("is_first"), py::keep_alive<1, 2>())
      .def("push", &OutputGate::push, py::arg("id"), py::arg("can_stop") = true)
      .def("push_silent", &OutputGate::push_silent)
      .def_property_readonly("num_held", &OutputGate::num_held)
      .def("take_ready", [to_tuple](OutputGate& self) { return to_tuple(self.take_ready()); })
      .def(
          "finish",
          [to_tuple](OutputGate& self, const std::vector<int32_t>& held_ids) {
            return to_tuple(self.finish(held_ids));
          },
          py::arg("held_ids"));
}

}  // namespace quire::core_parts
