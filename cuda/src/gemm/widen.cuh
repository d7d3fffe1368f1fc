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

template <class T, WeightFormat kFormat>
struct Widen;

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
    uint32_t small = (word & 0x80008000u) | (word >> 4 & 0x07f007f0u), pair;
    constexpr uint32_t kPowers = 0x7b807b80u;  // 2^120, twice
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(small), "r"(kPowers));
    return pair;
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

}  // namespace quire::cuda::gemm
