// Mixtures of experts on CUDA: routing, sorting tokens by expert, the experts' GEMMs, and the sum per token.
// Which experts have how many tokens is known on the device only, so all of it can be captured in a CUDA
// graph and replayed for other tokens. (On the CPU, quire/ops/moe.py does it with torch.)
//
// An entry is one expert of one token: entry token * top_k + slot. A row is an entry's place after sorting.
#pragma once

#include <cstdint>

#include "quire/kernels/dtype.h"
#include "quire/kernels/layers.h"
#include "quire/members.h"

namespace quire {

// ids and weights of each token's top_k experts, best first, of equal ones the one with the smaller id. The
// score of an expert is its part of the softmax over all experts, or its sigmoid; score + bias decides, and
// of num_groups groups of experts those of the top_groups best ones are considered: a group is as good as its
// best expert, with sigmoid as its best two together. weight = score / (sum over the chosen, where
// renormalize) * scale. NaN comes last.
struct MoeRouteParams {
  static constexpr char kName[] = "moe_route";
  DType dtype = DType::kBFloat16;  // of logits
  int32_t num_tokens = 0;
  int32_t num_experts = 0;       // at most 512
  int32_t top_k = 0;             // at most 32
  const void* logits = nullptr;  // [num_tokens, num_experts], rows stride_logits apart
  int64_t stride_logits = 0;
  int32_t* ids = nullptr;    // [num_tokens, top_k]
  float* weights = nullptr;  // [num_tokens, top_k]
  bool is_sigmoid = false;
  bool renormalize = true;
  float scale = 1;
  const float* bias = nullptr;  // [num_experts], may be null
  int32_t num_groups = 1;       // at most 32, divides num_experts
  int32_t top_groups = 1;
};
QUIRE_MEMBERS(MoeRouteParams,
              QUIRE_REQUIRED(dtype, num_tokens, num_experts, top_k, logits, stride_logits, ids, weights),
              QUIRE_OPTIONAL(is_sigmoid, renormalize, scale, bias, num_groups, top_groups));

// Sorts entries by expert, and cuts each expert's rows into tiles.
struct MoeSortParams {
  static constexpr char kName[] = "moe_sort";
  int32_t num_entries = 0;  // num_tokens * top_k
  int32_t num_experts = 0;  // at most 512
  int32_t tile_rows = 0;
  const int32_t* ids = nullptr;     // [num_entries]
  int32_t* entry_of_row = nullptr;  // [num_entries]
  int32_t* row_of_entry = nullptr;  // [num_entries]
  // [num_entries / tile_rows + min(num_experts, num_entries), 4]: expert, first row, number of rows, unused
  int32_t* tiles = nullptr;
  int32_t* num_tiles = nullptr;  // [1]
};
QUIRE_MEMBERS(MoeSortParams, QUIRE_REQUIRED(num_entries, num_experts, tile_rows, ids, entry_of_row,
                                            row_of_entry, tiles, num_tiles));

// out[row] = x @ weight[expert].T + bias[expert] for the expert of the row's tile; where gated,
// activation(first half) * second half of that, rounded as the activation kernel does.
struct MoeGemmParams {
  static constexpr char kName[] = "moe_gemm";
  DType dtype = DType::kBFloat16;  // 16-bit types only
  int32_t tile_rows = 0;           // 16 or 64, as in moe_sort
  int32_t num_sms = 0;             // multiprocessors to fill
  int32_t n = 0;                   // a multiple of 8, of 16 where gated
  int32_t k = 0;                   // a multiple of 8
  const void* x = nullptr;         // [.., k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;            // a multiple of 8
  const void* weight = nullptr;    // [num_experts, n, k], contiguous, 16-byte aligned
  void* out = nullptr;             // [num_entries, n or n / 2], contiguous, 16-byte aligned
  const int32_t* tiles = nullptr;
  const int32_t* num_tiles = nullptr;
  const void* bias = nullptr;             // [num_experts, n], may be null
  const int32_t* entry_of_row = nullptr;  // given: a row reads x[its entry / top_k]; null: x[row]
  int32_t top_k = 1;
  bool is_gated = false;
  Activation activation = Activation::kSilu;  // where gated
};
QUIRE_MEMBERS(MoeGemmParams,
              QUIRE_REQUIRED(dtype, tile_rows, num_sms, n, k, x, stride_x, weight, out, tiles, num_tiles),
              QUIRE_OPTIONAL(bias, entry_of_row, top_k, is_gated, activation));

// out[token] = shared[token] * sigmoid(shared_gate[token]) + the sum over the token's entries, in the order
// of their slots, of weight * x[row of the entry]; in float32, rounded once.
struct MoeCombineParams {
  static constexpr char kName[] = "moe_combine";
  DType dtype = DType::kBFloat16;
  int32_t num_tokens = 0;
  int32_t top_k = 0;
  int32_t hidden_size = 0;                // a multiple of 8
  const void* x = nullptr;                // [num_tokens * top_k, hidden_size], contiguous
  const int32_t* row_of_entry = nullptr;  // [num_tokens, top_k]
  const float* weights = nullptr;         // [num_tokens, top_k]
  void* out = nullptr;                    // [num_tokens, hidden_size], contiguous
  const void* shared = nullptr;           // [num_tokens, hidden_size], contiguous; may be null, or out
  const void* shared_gate = nullptr;      // [num_tokens]; may be null
};
QUIRE_MEMBERS(MoeCombineParams,
              QUIRE_REQUIRED(dtype, num_tokens, top_k, hidden_size, x, row_of_entry, weights, out),
              QUIRE_OPTIONAL(shared, shared_gate));

}  // namespace quire
