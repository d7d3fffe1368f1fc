// The small row-wise layers between the GEMMs of a block, on both devices.
//
// Results do not depend on the other rows. A 16-bit type is rounded where Hugging Face's Llama rounds.
//
// On CUDA, two of them can store float8 instead: with out_scale given, out is e4m3 and row i of the result is
// about out[i] * out_scale[i]. The scale is the row's largest magnitude / 448, at least 1e-12 / 448, and out
// is the result, rounded to dtype as ever, times 448 / that magnitude, rounded to the nearest.
#pragma once

#include <cstdint>

#include "quire/kernels/dtype.h"
#include "quire/members.h"

namespace quire {

// residual given: residual += x, out = norm(residual) * weight; else out = norm(x) * weight.
// norm(x) = x / sqrt(mean(x^2) + eps) in float32. With a 16-bit type each of the sum, the norm and the
// product is rounded, in that order.
struct RmsNormParams {
  static constexpr char kName[] = "rms_norm";
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t hidden_size = 0;  // CUDA: at most 32768 (16-bit types), 16384 (float32), 8192 (element by element)
  float eps = 0;
  const void* x = nullptr;  // [num_rows, hidden_size], rows stride_x apart
  int64_t stride_x = 0;
  const void* weight = nullptr;  // [hidden_size]
  void* out = nullptr;           // [num_rows, hidden_size], contiguous; may be x when stride_x = hidden_size
  void* residual = nullptr;      // [num_rows, hidden_size], contiguous, updated in place; may be null
  float* out_scale = nullptr;    // CUDA: [num_rows]; given: out is e4m3 and not x. null: out is of dtype
};
QUIRE_MEMBERS(RmsNormParams, QUIRE_REQUIRED(dtype, num_rows, hidden_size, eps, x, stride_x, weight, out),
              QUIRE_OPTIONAL(residual, out_scale));

// out = silu(gate) * up, where silu(g) = g / (1 + exp(-g)); with a 16-bit type silu is rounded before the
// product.
struct SiluMulParams {
  static constexpr char kName[] = "silu_mul";
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t intermediate_size = 0;  // CUDA with out_scale: at most 65536 (16-bit types), 32768, 8192, as above
  const void* gate_up = nullptr;  // [num_rows, 2 * intermediate_size]: gate, then up
  int64_t stride_gate_up = 0;
  void* out = nullptr;         // [num_rows, intermediate_size], contiguous
  float* out_scale = nullptr;  // CUDA: [num_rows]; given: out is e4m3. null: out is of dtype
};
QUIRE_MEMBERS(SiluMulParams, QUIRE_REQUIRED(dtype, num_rows, intermediate_size, gate_up, stride_gate_up, out),
              QUIRE_OPTIONAL(out_scale));

// out[i] = table[id], where id is token_ids[i], or last_token_ids[~token_ids[i]] when token_ids[i] is
// negative: ~row stands for "the last id sampled for this row", which the host does not know yet. For an id
// outside [0, vocab_size) after that, or a row outside last_token_ids, CUDA gives a row of NaN, so that it
// ends as id -1 of the sampler; the CPU throws InvalidArgument that names the token before anything is
// written.
struct EmbeddingParams {
  static constexpr char kName[] = "embedding";
  DType dtype = DType::kBFloat16;
  int32_t num_tokens = 0;
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  const int32_t* token_ids = nullptr;       // [num_tokens]
  const void* table = nullptr;              // [vocab_size, hidden_size], contiguous
  void* out = nullptr;                      // [num_tokens, hidden_size], contiguous
  const int32_t* last_token_ids = nullptr;  // CUDA: [num_last_token_ids]; may be null when that is 0
  int32_t num_last_token_ids = 0;
};
QUIRE_MEMBERS(EmbeddingParams,
              QUIRE_REQUIRED(dtype, num_tokens, vocab_size, hidden_size, token_ids, table, out),
              QUIRE_OPTIONAL(last_token_ids, num_last_token_ids));

// CUDA: out[j] = x[indices[j]] for up to two tensors at once, as the last layer gathers the rows of the
// tokens to sample from its attention output and its residual. An index outside [0, num_x_rows) gives a row
// of NaN.
struct GatherRowsParams {
  static constexpr char kName[] = "gather_rows";
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t num_x_rows = 0;
  const int32_t* indices = nullptr;  // [num_rows]
  const void* x = nullptr;           // [num_x_rows, width], rows stride_x apart
  int64_t stride_x = 0;
  int32_t width = 0;
  void* out = nullptr;       // [num_rows, width], contiguous; apart from x
  const void* x2 = nullptr;  // the second tensor; of width2 0: there is none
  int64_t stride_x2 = 0;
  int32_t width2 = 0;
  void* out2 = nullptr;
};
QUIRE_MEMBERS(GatherRowsParams, QUIRE_REQUIRED(dtype, num_rows, num_x_rows, indices, x, stride_x, width, out),
              QUIRE_OPTIONAL(x2, stride_x2, width2, out2));

}  // namespace quire
