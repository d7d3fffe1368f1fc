// The engine's side of the socket. Every call that can wait, or take a lock that another thread holds, gives
// up the GIL: the server's threads never need it.
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>

#include "bindings.h"
#include "quire/engine_server.h"

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
           py::arg("vocabulary") = "", py::arg("loaded") = "",
           py::arg("cache_config") = std::map<std::string, std::string>(), ReleaseGil())
      .def("wait_for_work", &EngineServer::wait_for_work, ReleaseGil())
      .def("publish", &EngineServer::publish, ReleaseGil())
      .def("stop", &EngineServer::stop, ReleaseGil());
  m.def("send_start_error", &send_start_error, py::arg("fd"), py::arg("message"), ReleaseGil());
}

}  // namespace quire::bindings
