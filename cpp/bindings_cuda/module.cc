// The module quire._cuda: one of its own, so that _core loads on machines without a GPU driver.
#include "bindings.h"

PYBIND11_MODULE(_cuda, m) { quire::bindings::bind_cuda(m); }
