#include "bindings.h"

namespace quire::bindings {

void bind_core(pybind11::module_&) {}

}  // namespace quire::bindings
