#include "bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Quire's C++ core: scheduler, block manager, CPU kernels, engine server.";
  quire::bindings::bind_core(m);
  quire::bindings::bind_request(m);
  quire::bindings::bind_ops(m);
  quire::bindings::bind_engine(m);
  quire::bindings::bind_model_config(m);
}
