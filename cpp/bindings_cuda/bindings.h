// CUDA kernels on raw device pointers. The caller has checked shapes, types and layout, and keeps the tensors
// alive until the stream has passed the call. Pointers and the stream come as integers, 0 for null and for
// the default stream.
//
// Every launch releases the GIL: it touches no Python object and may wait for the driver.
#pragma once

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>

namespace quire::bindings {

namespace py = pybind11;

using Address = uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline cudaStream_t stream_at(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

void bind_attention(py::module_& m);
void bind_gemm(py::module_& m);
void bind_layers(py::module_& m);
void bind_sample(py::module_& m);

}  // namespace quire::bindings
