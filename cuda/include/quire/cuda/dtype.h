// Element types of activations, weights and logits on the GPU.
#pragma once

#include <cstdint>

namespace quire::cuda {

// The first two as in quire::cpu::DType.
enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Of a KV cache: the activations' type, or float8 e4m3 of x / scale, saturated, with one scale each for keys
// and values.
enum class KVDType : int32_t { kSame = 0, kFloat8E4M3 = 1 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace quire::cuda
