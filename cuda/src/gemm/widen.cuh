// Weights of fewer bits than x, widened to the operand of wgmma that is in registers.
//
// A load of 16 rows x 32 bytes by load_matrices(), lane = 4 * g + t: words[0] is word t of the first 16 bytes
// of row g, words[1] the same of row g + 8, words[2] and words[3] of the next 16 bytes. The order in which
// columns are stored makes such a word hold just what the lane's operand registers need (wgmma.cuh).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "quire/kernels/gemm.h"

namespace quire::cuda::gemm {

// Where load_matrices() reads by a lane, in a box of 64 rows of which a warp has 16; XORed with multiples of
// 32 bytes it is the same of the next columns.
__device__ inline uint32_t matrices_at(int warp, int lane) {
  return (warp * 16 + lane % 16) * 128 + (lane % 8 ^ lane / 16) * 16;
}

template <class T, WeightFormat kFormat>
struct Widen;

// Of two elements each, rounded.
template <class T>
__device__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, __half>) {
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  } else {
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  }
  return pair;
}
template <class T>
__device__ uint32_t subtract_pairs(uint32_t a, uint32_t b) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, __half>) {
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  } else {
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  }
  return pair;
}

// Exponent and mantissa of e4m3 move to where T has them. As T's exponents have another bias, that is the
// value times 2^-120 (bfloat16) or 2^-8 (float16), also for the subnormal ones, of which T has more.
template <class T>
struct Widen<T, WeightFormat::kFloat8> {
  static constexpr bool kIsHalf = std::is_same_v<T, __half>;
  static constexpr int kOperands = 2;  // of 16 columns, in a load
  // What remains to be multiplied. The 2^-120 of bfloat16 would leave sums no room above float32's smallest
  // numbers, so each element is multiplied at once.
  static constexpr float kFactor = kIsHalf ? 256.0f : 1.0f;

  // The elements in the high bytes of both halves of the word.
  static __device__ uint32_t high_bytes(uint32_t word) {
    if constexpr (kIsHalf) return (word & 0x80008000u) | (word >> 1 & 0x3f803f80u);
    constexpr uint32_t kPowers = 0x7b807b80u;  // 2^120, twice
    return multiply_pairs<T>((word & 0x80008000u) | (word >> 4 & 0x07f007f0u), kPowers);
  }

  static __device__ void run(const uint32_t (&words)[4], uint32_t (&operands)[kOperands][4]) {
#pragma unroll
    for (int i = 0; i < kOperands; ++i) {
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const uint32_t word = words[2 * i + row];
        operands[i][row] = high_bytes(word);
        operands[i][2 + row] = high_bytes(word << 8);
      }
    }
  }
};

// Four bits: i is which of the four nibbles of both halves of a word.

// 0 to 15 become the last bits of 128 (bfloat16) or 1024 (float16), whose last bit counts ones. Taking away
// the same plus zero is exact.
template <class T>
struct Widen<T, WeightFormat::kInt4> {
  static constexpr uint32_t kOffset = std::is_same_v<T, __half> ? 0x64006400u : 0x43004300u;

  static __device__ uint32_t prepared_zero(uint32_t zero) { return zero * 0x00010001u + kOffset; }

  static __device__ uint32_t number(uint32_t word, int i, uint32_t zero) {
    // In one instruction, which the compiler does not find for two constants: (a & b) | c.
    uint32_t shifted;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(shifted) : "r"(word >> 4 * i), "n"(0x000f000f), "r"(kOffset));
    return subtract_pairs<T>(shifted, zero);
  }
};

// Exponent and mantissa of e2m1 move to where T has them: the value times 2^-126 (bfloat16) or 2^-14
// (float16), as of float8.
template <class T>
struct Widen<T, WeightFormat::kMxfp4> {
  static constexpr bool kIsHalf = std::is_same_v<T, __half>;
  static constexpr uint32_t kPowers = kIsHalf ? 0x74007400u : 0x7e807e80u;  // 2^14, 2^126

  static __device__ uint32_t prepared_zero(uint32_t) { return 0; }

  static __device__ uint32_t number(uint32_t word, int i, uint32_t) {
    const uint32_t high = word << (12 - 4 * i);  // the nibble is the highest of its half
    constexpr int kDown = kIsHalf ? 3 : 6;
    const uint32_t moved = 4 * i + kDown < 12 ? word << (12 - kDown - 4 * i) : word >> (4 * i + kDown - 12);
    const uint32_t small = (high & 0x80008000u) | (moved & (kIsHalf ? 0x0e000e00u : 0x01c001c0u));
    return multiply_pairs<T>(small, kPowers);
  }
};

}  // namespace quire::cuda::gemm
