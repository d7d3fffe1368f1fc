#include "quire/wire.h"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/bind_members.h"
#include "core_parts.h"
#include "quire/request_tensor.h"
#include "wire_structs.h"

namespace quire::core_parts {

namespace {

// A type in the words of tests/common/wire_format.py.
template <class T>
py::object layout() {
  if constexpr (std::is_same_v<T, std::string>) {
    return py::str("text");
  } else if constexpr (std::is_same_v<T, LogitBias>) {
    return py::str("if");
  } else if constexpr (std::is_same_v<T, Logprob>) {
    return py::str("ifi");
  } else if constexpr (std::is_same_v<T, Observation>) {
    return py::str("dII");
  } else if constexpr (std::is_same_v<T, RequestTiming>) {
    return py::str(std::to_string(sizeof(RequestTiming)) + "s");
  } else if constexpr (std::is_same_v<T, bool>) {
    return py::str("?");
  } else if constexpr (wire::kIsScalar<T>) {
    return py::str(py::format_descriptor<wire::Scalar<T>>::format());
  } else if constexpr (wire::kIsOptional<T>) {
    return py::make_tuple(layout<typename T::value_type>());
  } else if constexpr (wire::kIsVector<T>) {
    py::list list;
    list.append(layout<typename T::value_type>());
    return list;
  } else {
    py::dict members;
    for_each_member<T>([&]<class M>(const M& member) { members[member.name] = layout<typename M::Type>(); });
    return members;
  }
}

}  // namespace

void bind_wire(py::module_& m) {
  m.def(
      "wire_layouts",
      [] {
        return std::tuple{layout<wire::RequestsFrame>(), layout<wire::ReadyFrame>(), layout<StepOutputs>()};
      },
      "Members of the payloads of requests, ready and step, as the lists in the core have them.");
  m.def(
      "histograms",
      [] { return std::vector<std::string>(std::begin(kHistogramNames), std::end(kHistogramNames)); },
      "The series that the core observes, in the order of their numbers in observations.");
  m.def(
      "encode_requests",
      [](const std::vector<std::tuple<uint64_t, std::vector<int32_t>, SamplingParams>>& additions,
         std::vector<uint64_t> cancellations, size_t max_payload) {
        wire::RequestsFrame frame;
        for (const auto& [request_id, prompt_ids, params] : additions) {
          NewRequest& request = frame.additions.emplace_back();
          request.request_id = request_id;
          request.prompt_ids = prompt_ids;
          request.params = params;
        }
        frame.cancellations = std::move(cancellations);
        std::string out;
        wire::encode(frame, out, max_payload);
        return py::bytes(out);
      },
      "What the client sends.", py::arg("additions"), py::arg("cancellations"), py::arg("max_payload"));
  m.def(
      "decode_requests",
      [](const py::bytes& payload) {
        wire::RequestsFrame frame;
        wire::decode_requests(std::string_view(payload), frame);
        return std::pair(frame.additions.size(), frame.cancellations.size());
      },
      "Reads what a client sent: the numbers of additions and cancellations.", py::arg("payload"));
  m.def(
      "decode_request",
      [](const py::bytes& bytes) {
        RequestTensor tensor;
        decode_request(std::string_view(bytes), tensor);
        py::typing::Dict<py::str, py::object> fields;
        for_each_field(tensor, [&](const char* name, const auto& value) { fields[name] = value; });
        return fields;
      },
      "Reads the tensor `request`: all of its fields.", py::arg("bytes"));
  m.def(
      "decode_step",
      [](const py::bytes& payload) {
        StepOutputs step;
        wire::decode_step(std::string_view(payload), step);
        // What a client reads of each release.
        int64_t sum = 0;
        for (const Release& release : step.releases) {
          for (const int32_t id : step.ids(release)) sum += id;
          if (!release.details) continue;
          sum += static_cast<int64_t>(release.details->stop_string.size());
          if (release.details->timing) sum += release.details->timing->end_ns;
          for (const Logprob& entry : release.details->logprobs) sum += entry.rank;
          for (const Logprob& entry : release.details->prompt_logprobs) sum += entry.rank;
        }
        return std::pair(step.releases.size(), sum);
      },
      "Reads a step as the client does: the number of releases, and a sum over all that they "
      "name.",
      py::arg("payload"));
}

}  // namespace quire::core_parts
