// The engine's side of the socket. Every call that can wait, or take a lock that another thread holds, gives
// up the GIL: the server's threads never need it.
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.h"
#include "quire/engine_server.h"
#include "quire/wire.h"

namespace quire::bindings {

namespace py = pybind11;

namespace {

// The destructor waits for the client to read what is published.
struct DeleteWithoutGil {
  void operator()(EngineServer* server) const {
    py::gil_scoped_release release;
    delete server;
  }
};

}  // namespace

void bind_engine(py::module_& m) {
  using ReleaseGil = py::call_guard<py::gil_scoped_release>;
  py::class_<EngineServer, std::unique_ptr<EngineServer, DeleteWithoutGil>>(
      m, "EngineServer",
      "Takes requests from a socket into a core, and sends the core's outputs back. "
      "Belongs to the thread that steps the core.")
      .def(py::init<EngineCore&, int>(), py::arg("core"), py::arg("fd"), py::keep_alive<1, 2>(), ReleaseGil())
      .def("send_ready", &EngineServer::send_ready, py::arg("model"), py::arg("defaults") = SamplingParams(),
           py::arg("vocabulary") = "", py::arg("loaded") = "", ReleaseGil())
      .def("wait_for_work", &EngineServer::wait_for_work, ReleaseGil())
      .def("publish", &EngineServer::publish, ReleaseGil())
      .def("stop", &EngineServer::stop, ReleaseGil());
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
      "What the client sends, for tests.", py::arg("additions"), py::arg("cancellations"),
      py::arg("max_payload"));
  m.def(
      "decode_requests",
      [](const py::bytes& payload) {
        wire::RequestsFrame frame;
        wire::decode_requests(std::string_view(payload), frame);
        return std::pair(frame.additions.size(), frame.cancellations.size());
      },
      "Reads what a client sent, for tests: the numbers of additions and cancellations.", py::arg("payload"));
  m.def(
      "decode_step",
      [](const py::bytes& payload) {
        StepOutputs step;
        wire::decode_step(std::string_view(payload), step);
        // What a client reads of each release.
        int64_t sum = 0;
        for (const Release& release : step.releases) {
          const auto ids = std::span(step.token_ids).subspan(release.ids_begin, release.num_ids);
          for (const int32_t id : ids) sum += id;
          sum += static_cast<int64_t>(step.stop_string(release).size());
          if (release.receipt_idx >= 0) sum += step.receipts[static_cast<size_t>(release.receipt_idx)].end_ns;
          if (release.logprobs_idx < 0) continue;
          const ReleaseLogprobs& run = step.logprobs[static_cast<size_t>(release.logprobs_idx)];
          for (const Logprob& entry : step.of_ids(run)) sum += entry.rank;
          for (const Logprob& entry : step.of_prompt(run)) sum += entry.rank;
        }
        return std::pair(step.releases.size(), sum);
      },
      "Reads a step as the client does, for tests: the number of releases, and a sum over all that they "
      "name.",
      py::arg("payload"));
  m.def("send_start_error", &send_start_error, py::arg("fd"), py::arg("message"), ReleaseGil());
}

}  // namespace quire::bindings
