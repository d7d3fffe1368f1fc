#include <pybind11/stl.h>

#include "core_parts.h"
#include "quire/cpu/sampling.h"
#include "quire/sampling.h"

namespace quire::core_parts {

void bind_draws(py::module_& m) {
  m.def("philox4x32", &cpu::philox4x32, py::arg("seed"), py::arg("counter"));
  m.def("sequence_seed", &sequence_seed, py::arg("seed"), py::arg("index"),
        "The seed of sequence `index` of a request with `seed`, both as uint64.");
}

}  // namespace quire::core_parts
