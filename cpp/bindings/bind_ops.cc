#include "bindings.h"

namespace quire::bindings {

void bind_ops(pybind11::module_&) {}

}  // namespace quire::bindings
