#include "bindings.h"

namespace quire::bindings {

void bind_engine(pybind11::module_&) {}

}  // namespace quire::bindings
