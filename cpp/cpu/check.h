// Checks of sizes that ops share.
#pragma once

#include <string>

#include "kernel_table.h"
#include "quire/error.h"

namespace quire::cpu {

inline void check_positive(const char* name, int64_t value) {
  if (value < 1) throw InvalidArgument(name, std::to_string(value), "1 or more");
}

inline void check_at_least_0(const char* name, double value) {
  if (!(value >= 0)) throw InvalidArgument(name, std::to_string(value), "0 or more");
}

// Where the kernels of this type stand in each row of the kernel table.
inline int table_index(DType dtype) {
  if (dtype == DType::kFloat32 || dtype == DType::kBFloat16) return static_cast<int>(dtype);
  throw InvalidArgument("dtype", std::to_string(static_cast<int>(dtype)), "0 (float32), 1 (bfloat16)");
}

// For a member of a Params that only CUDA's kernel has.
inline void check_default(const char* name, bool is_default) {
  if (!is_default) throw InvalidArgument(name, "a value", "its default, on the CPU");
}

inline void check_heads(int32_t num_q_heads, int32_t num_kv_heads, int32_t head_dim) {
  check_positive("num_kv_heads", num_kv_heads);
  if (num_q_heads < 1 || num_q_heads % num_kv_heads != 0) {
    throw InvalidArgument("num_q_heads", std::to_string(num_q_heads),
                          "a multiple of num_kv_heads = " + std::to_string(num_kv_heads));
  }
  if (head_dim < 32 || head_dim > kMaxHeadDim || head_dim % 8 != 0) {
    throw InvalidArgument("head_dim", std::to_string(head_dim),
                          "multiples of 8 from 32 to " + std::to_string(kMaxHeadDim));
  }
}

}  // namespace quire::cpu
