// CUDA kernels on raw device pointers. The caller keeps the tensors alive until the stream has passed the
// call. The stream comes as an integer, 0 for the default stream.
#pragma once

#include "bindings/kernels.h"
#include "quire/cuda/stream.h"

namespace quire::bindings {

void bind_attention(py::module_& m);
void bind_gemm(py::module_& m);
void bind_layers(py::module_& m);
void bind_moe(py::module_& m);
void bind_sample(py::module_& m);

inline void bind_cuda(py::module_& m) {
  m.doc() = "Quire's CUDA kernels on raw device pointers.";
  bind_attention(m);
  bind_gemm(m);
  bind_layers(m);
  bind_moe(m);
  bind_sample(m);
}

}  // namespace quire::bindings
