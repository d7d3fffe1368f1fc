// The module quire._cuda: one of its own, so that _core loads on machines without a GPU driver.
#include "bindings.h"

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Quire's CUDA kernels on raw device pointers.";
  quire::bindings::bind_attention(m);
  quire::bindings::bind_gemm(m);
  quire::bindings::bind_layers(m);
  quire::bindings::bind_sample(m);
}
