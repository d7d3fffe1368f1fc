// Element types of activations, weights and KV cache.
#pragma once

#include <cstdint>

namespace quire::cpu {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// Storage of one bfloat16: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace quire::cpu
