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

// Float8 operands of GEMMs on CUDA, activations and weights, keep the columns of each 16 in this order:
// position p holds column kFloat8Columns[p]. A lane of a GEMM that widens weights in registers so finds its
// four columns in one word, those of its second register in the even bytes. Products of two operands in the
// same order are the same.
inline constexpr int kFloat8Columns[16] = {8, 0, 9, 1, 10, 2, 11, 3, 12, 4, 13, 5, 14, 6, 15, 7};

// Weights of four bits keep each 32 columns in 16 bytes, four little-endian words: nibble `nibble` (bits 4 *
// nibble on) of word `word` holds this column. A word so holds, 4 * i bits up, what a lane needs in register
// i of two operands of 16 columns.
constexpr int four_bit_column(int word, int nibble) {
  return 16 * (nibble % 4 / 2) + 8 * (nibble % 2) + 2 * word + nibble / 4;
}

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace quire
