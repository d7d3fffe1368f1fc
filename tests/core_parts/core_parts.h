// Parts of the core on their own, for tests alone: no wheel has this module.
#pragma once

#include <pybind11/pybind11.h>

namespace quire::core_parts {

namespace py = pybind11;

void bind_blocks(py::module_& m);  // hashes, BlockPool, BlockManager
void bind_text(py::module_& m);    // StopMatcher, OutputGate
void bind_wire(py::module_& m);    // the client's side of the socket
void bind_draws(py::module_& m);   // random numbers and seeds
void bind_cuda(py::module_& m);    // the bindings of quire._cuda without its kernels

}  // namespace quire::core_parts
