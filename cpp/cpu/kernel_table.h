// The functions that exist once per instruction set. Each works on one piece of an op; the ops
// (paged_attention.cc and so on) check sizes, cut the work into pieces and spread them over threads.
#pragma once

#include <cstdint>

#include "quire/cpu/layers.h"
#include "quire/cpu/paged_attention.h"
#include "quire/cpu/rope_and_cache.h"

namespace quire::cpu {

// One piece of attention: num_queries tokens of one request, and num_kv_heads KV heads with num_heads of the
// query heads of each, those of the first one from first_head on.
struct AttentionTile {
  int32_t seq_idx;
  int32_t first_query;  // in [0, query_len)
  int32_t num_queries;
  int32_t num_kv_heads;
  int32_t first_head;
  int32_t num_heads;
};

constexpr int32_t kMaxTileRows = 64;  // num_kv_heads * num_queries * num_heads of a tile
constexpr int32_t kMaxHeadDim = 256;
constexpr int32_t kMaxTileTokens = 32;  // tokens of KV that a tile looks at at once

// Floats of scratch for a tile: query, keys transposed, values, scores, accumulator (see attention_impl.h).
constexpr int64_t kAttentionScratch =
    2 * kMaxTileRows * kMaxHeadDim + 2 * kMaxTileTokens * kMaxHeadDim + kMaxTileRows * kMaxTileTokens;

// What one pass over a row of logits finds.
struct LogitsSummary {
  float max;
  bool has_nan;
};

constexpr int32_t kLogitsBlock = 64;  // logits per entry of block_max and block_sum

struct KernelTable {
  const char* name;

  // Indexed by DType.
  void (*attention_tile[2])(const PagedAttentionParams& params, const AttentionTile& tile, float* scratch);
  void (*rope_and_cache[2])(const RopeAndCacheParams& params, int64_t token_begin, int64_t token_end);
  void (*norm[2])(const NormParams& params, int64_t row_begin, int64_t row_end);
  void (*activate[2])(const ActivateParams& params, int64_t row_begin, int64_t row_end);
  void (*scale_and_cap[2])(const ScaleAndCapParams& params, int64_t row_begin, int64_t row_end);
  LogitsSummary (*summarize[2])(const void* logits, int64_t size);
  int64_t (*find_first[2])(const void* logits, int64_t size, float value);  // size when it is not there
  void (*to_float[2])(const void* logits, int64_t size, float* out);

  // weights[i] = exp((logits[i] - max) * inverse_temperature); may be in place. block_sums[b] is the sum of
  // weights of block b; may be null.
  void (*softmax_weights)(const float* logits, int64_t size, float max, float inverse_temperature,
                          float* weights, float* block_sums);
  void (*block_max)(const float* logits, int64_t size, float* maxima);
};

// Null where the compiler or the platform has no such instructions.
const KernelTable* portable_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();

// The table in use.
const KernelTable& kernels();

}  // namespace quire::cpu
