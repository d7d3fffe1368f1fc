// What tests need on a GPU besides quire._cuda: no wheel has this module.
#include <pybind11/pybind11.h>

#include "late_copy.h"

PYBIND11_MODULE(_cuda_parts, m) {
  m.def("late_copy", [](uintptr_t to, uintptr_t from, int64_t bytes, int64_t nanoseconds, uintptr_t stream) {
    quire::cuda::launch_late_copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes,
                                  nanoseconds, reinterpret_cast<cudaStream_t>(stream));
  });
}
