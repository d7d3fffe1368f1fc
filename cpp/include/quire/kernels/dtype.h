// Element types of activations, weights, logits and KV caches: one numbering for both devices and for Python
// (quire/ops/tensors.py).
#pragma once

#include <cstdint>

namespace quire {

// The CPU has no kernels for float16.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A KV cache holds the activations' type, or float8 e4m3 of x / scale, saturated, with one scale each for
// keys and values. The CPU has no kernels for the latter.
enum class KVDType : int32_t { kSame = 0, kFloat8E4M3 = 1 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace quire
