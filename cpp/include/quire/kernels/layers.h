// The small row-wise layers between the GEMMs of a block, on both devices.
//
// Results do not depend on the other rows. A 16-bit type is rounded where Hugging Face's models round.
//
// On CUDA, two of them can store float8 instead: with out_scale given, out is e4m3 and row i of the result is
// about out[i] * out_scale[i]. The scale is the row's largest magnitude / 448, at least 1e-12 / 448, and out
// is the result, rounded to dtype as ever, times 448 / that magnitude, rounded to the nearest, its columns in
// the order of kFloat8Columns. Of 16-bit types, rows of whole 32 bytes.
#pragma once

#include <cstdint>

#include "quire/kernels/dtype.h"
#include "quire/members.h"

namespace quire {

// RMSNorm, or LayerNorm where centered, of each row, or of each of num_groups parts of a row with weights of
// their own (the heads of queries and keys).
//
// residual given: residual += x * residual_scale, and the norm is of that; else of x.
// RMSNorm: x / sqrt(mean(x^2) + eps) * weight. LayerNorm: (x - mean(x)) / sqrt(variance(x) + eps) * weight +
// bias. Both in float32. With a 16-bit type the product of x and its scale, the sum, the norm and its product
// with the weight are rounded, in that order; LayerNorm, and RMSNorm with rounds_once, are rounded once, at
// their end.
struct NormParams {
  static constexpr char kName[] = "norm";
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  // Of a group. CUDA: at most 32768 (16-bit types), 16384 (float32), 8192 (element by element).
  int32_t hidden_size = 0;
  float eps = 0;
  const void* x = nullptr;  // [num_rows, num_groups, hidden_size], rows stride_x apart
  int64_t stride_x = 0;
  const void* weight = nullptr;  // [num_groups, hidden_size]
  void* out =
      nullptr;  // [num_rows, num_groups, hidden_size], rows stride_out apart; may be x with its stride
  int64_t stride_out = 0;
  int32_t num_groups = 1;
  // With rounds_once: added to the weight in float32, which keeps what a 16-bit 1 + weight would lose.
  float weight_offset = 0;
  bool rounds_once = false;
  bool is_centered = false;
  const void* bias = nullptr;  // LayerNorm: [num_groups, hidden_size]; may be null
  void* residual = nullptr;  // [num_rows, num_groups, hidden_size], contiguous, updated in place; may be null
  float residual_scale = 1;
  float* out_scale = nullptr;  // CUDA, of one group: [num_scales, num_rows]; given: out is e4m3 and not x
  int32_t num_scales = 1;      // of a row: 1, or one for each 128 columns
};
QUIRE_MEMBERS(NormParams,
              QUIRE_REQUIRED(dtype, num_rows, hidden_size, eps, x, stride_x, weight, out, stride_out),
              QUIRE_OPTIONAL(num_groups, weight_offset, rounds_once, is_centered, bias, residual,
                             residual_scale, out_scale, num_scales));

enum class Activation : int32_t {
  kSilu = 0,       // x / (1 + exp(-x))
  kGelu = 1,       // x * Phi(x), with the error function
  kGeluTanh = 2,   // its approximation by tanh
  kRelu = 3,       // max(x, 0)
  kRelu2 = 4,      // max(x, 0)^2
  kSwigluOai = 5,  // gated only: min(gate, 7) * sigmoid(1.702 * that), times 1 + clamp(up, -7, 7)
};

// out = activation(x), or activation(gate) * up where gated; with a 16-bit type the activation is rounded
// before the product.
struct ActivateParams {
  static constexpr char kName[] = "activate";
  DType dtype = DType::kBFloat16;
  Activation activation = Activation::kSilu;
  bool is_gated = false;
  int32_t num_rows = 0;
  int32_t size = 0;         // of a row of out. CUDA with out_scale: at most 65536
  const void* x = nullptr;  // [num_rows, size], or where gated [num_rows, 2 * size]: gate, then up
  int64_t stride_x = 0;
  void* out = nullptr;         // [num_rows, size], contiguous
  float* out_scale = nullptr;  // CUDA, gated: [num_rows]; given: out is e4m3. null: out is of dtype
};
QUIRE_MEMBERS(ActivateParams, QUIRE_REQUIRED(dtype, activation, is_gated, num_rows, size, x, stride_x, out),
              QUIRE_OPTIONAL(out_scale));

// CUDA: out and scale as above, of x itself.
struct QuantizeRowsParams {
  static constexpr char kName[] = "quantize_rows";
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t size = 0;         // at most 65536
  const void* x = nullptr;  // [num_rows, size], rows stride_x apart
  int64_t stride_x = 0;
  void* out = nullptr;     // [num_rows, size] e4m3, contiguous
  float* scale = nullptr;  // [num_scales, num_rows]
  int32_t num_scales = 1;  // of a row: 1, or one for each 128 columns
};
QUIRE_MEMBERS(QuantizeRowsParams, QUIRE_REQUIRED(dtype, num_rows, size, x, stride_x, out, scale),
              QUIRE_OPTIONAL(num_scales));

// x *= scale, then x = soft_cap * tanh(x / soft_cap) unless soft_cap is 0, rounded once.
struct ScaleAndCapParams {
  static constexpr char kName[] = "scale_and_cap";
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t size = 0;
  void* x = nullptr;  // [num_rows, size], rows stride_x apart
  int64_t stride_x = 0;
  float scale = 1;
  float soft_cap = 0;
};
QUIRE_MEMBERS(ScaleAndCapParams, QUIRE_REQUIRED(dtype, num_rows, size, x, stride_x, scale, soft_cap));

// out[i] = table[id] * scale, where id is token_ids[i], or last_token_ids[~token_ids[i]] when token_ids[i] is
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
  float scale = 1;
};
QUIRE_MEMBERS(EmbeddingParams,
              QUIRE_REQUIRED(dtype, num_tokens, vocab_size, hidden_size, token_ids, table, out),
              QUIRE_OPTIONAL(last_token_ids, num_last_token_ids, scale));

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
