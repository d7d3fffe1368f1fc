// The small row-wise layers between the GEMMs of a Llama block.
#pragma once

#include <cstdint>

#include "quire/cpu/dtype.h"

namespace quire::cpu {

// residual given: residual += x, out = norm(residual) * weight; else out = norm(x) * weight.
// norm(x) = x / sqrt(mean(x^2) + eps) in float32. With bfloat16 each of the sum, the norm and the product is
// rounded, in that order, as Hugging Face's Llama does.
struct RmsNormParams {
  DType dtype = DType::kFloat32;
  int32_t num_rows = 0;
  int32_t hidden_size = 0;
  float eps = 0;
  const void* x = nullptr;  // [num_rows, hidden_size], rows stride_x apart
  int64_t stride_x = 0;
  void* residual = nullptr;      // [num_rows, hidden_size], contiguous, updated in place; may be null
  const void* weight = nullptr;  // [hidden_size]
  void* out = nullptr;           // [num_rows, hidden_size], contiguous; may be x
};
void rms_norm(const RmsNormParams& params);

// out = silu(gate) * up, where silu(g) = g / (1 + exp(-g)); with bfloat16 silu is rounded before the product.
struct SiluMulParams {
  DType dtype = DType::kFloat32;
  int32_t num_rows = 0;
  int32_t intermediate_size = 0;
  const void* gate_up =
      nullptr;  // [num_rows, 2 * intermediate_size]: gate, then up; rows stride_gate_up apart
  int64_t stride_gate_up = 0;
  void* out = nullptr;  // [num_rows, intermediate_size], contiguous
};
void silu_mul(const SiluMulParams& params);

// out[i] = table[token_ids[i]].
struct EmbeddingParams {
  DType dtype = DType::kFloat32;
  int32_t num_tokens = 0;
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens], in [0, vocab_size)
  const void* table = nullptr;         // [vocab_size, hidden_size], contiguous
  void* out = nullptr;                 // [num_tokens, hidden_size], contiguous
};
// Throws InvalidArgument that names the token before anything is written.
void embedding(const EmbeddingParams& params);

}  // namespace quire::cpu
