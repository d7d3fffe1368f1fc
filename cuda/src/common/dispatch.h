// From run-time values to template arguments, and the errors for values that have no template.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "quire/kernels/dtype.h"

namespace quire::cuda {

[[noreturn]] inline void refuse(const std::string& name, const std::string& given,
                                const std::string& allowed) {
  throw std::invalid_argument(name + ": got " + given + "; allowed: " + allowed);
}

inline void check_range(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  if (value < lowest || value > highest) {
    refuse(name, std::to_string(value), std::to_string(lowest) + " to " + std::to_string(highest));
  }
}

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <class T>
struct Type {
  using type = T;
};

// fn(Type<T>{}) with the C++ type of dtype.
template <class Fn>
void dispatch_dtype(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(Type<float>{});
    case DType::kBFloat16:
      return fn(Type<__nv_bfloat16>{});
    case DType::kFloat16:
      return fn(Type<__half>{});
  }
  refuse("dtype", std::to_string(static_cast<int>(dtype)), "0 (float32), 1 (bfloat16), 2 (float16)");
}

}  // namespace quire::cuda
