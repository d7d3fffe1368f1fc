#include "core_parts.h"

PYBIND11_MODULE(_core_parts, m) {
  pybind11::module_::import("quire._core");  // has TokenTable, SamplingParams and the exceptions
  m.doc() = "Parts of Quire's core on their own, for tests.";
  quire::core_parts::bind_blocks(m);
  quire::core_parts::bind_text(m);
  quire::core_parts::bind_wire(m);
  quire::core_parts::bind_draws(m);
#if QUIRE_CUDA_BINDINGS
  quire::core_parts::bind_cuda(m);
#endif
}
