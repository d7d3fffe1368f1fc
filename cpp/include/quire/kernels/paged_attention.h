// Causal attention of a mixed batch (decode, chunks of prompts, prompts after a cached prefix) over a paged
// KV cache.
//
// Token j of sequence i, j in [0, query_len), stands at position seq_lens[i] - query_len + j and sees the
// keys at positions [0, that position]. The keys and values of this step's tokens must be in the cache
// already.
//
// With a window, the token at position p sees the keys in (p - window, p] only. For a sequence whose first
// query token stands at p, keys before (p - window + 1) / 64 * 64 are neither planned nor read, and may be
// gone from the cache and the block table.
//
// On CUDA there are two calls: a plan once per step, then paged_attention once per layer. The plan reads the
// batch geometry on the device and cuts it into pieces of work for a fixed grid, so both can be captured in a
// CUDA graph and replayed for other batches. Sequences without query tokens cost nothing. On the CPU, the
// layer's call reads the geometry.
#pragma once

#include <cstdint>

#include "quire/kernels/dtype.h"
#include "quire/members.h"

namespace quire {

// The sizes of a model's attention, and on CUDA what the workspace is sized by. The same values must be given
// to the plan and to every layer.
struct PagedAttentionConfig {
  static constexpr char kName[] = "PagedAttentionConfig";
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_q_heads
  int32_t head_dim = 0;      // a multiple of 8 in [32, 256]; CUDA, float8 cache: of 16

  int32_t window = 0;  // 0: none

  // CUDA, all of these.
  int32_t max_num_seqs = 0;
  int32_t max_num_tokens = 0;  // query tokens in a step
  int32_t max_seq_len = 0;
  int32_t num_sms = 0;  // multiprocessors to fill
  // 0: cut for the best balance. Otherwise a multiple of 64: contexts of decoding sequences are cut at
  // multiples of this many keys and those of prompts nowhere, whatever the batch, so that a sequence's result
  // does not depend on the sequences beside it.
  int32_t split_keys = 0;
};
QUIRE_MEMBERS(PagedAttentionConfig, QUIRE_REQUIRED(num_q_heads, num_kv_heads, head_dim),
              QUIRE_OPTIONAL(window, max_num_seqs, max_num_tokens, max_seq_len, num_sms, split_keys));

struct PagedAttentionPlanParams {
  static constexpr char kName[] = "paged_attention_plan";
  PagedAttentionConfig config;
  const int32_t* num_seqs = nullptr;          // [1], at most max_num_seqs
  const int32_t* query_start_loc = nullptr;   // [num_seqs + 1]
  const int32_t* seq_lens = nullptr;          // [num_seqs]
  const int32_t* block_table_rows = nullptr;  // [num_seqs]
  void* workspace = nullptr;                  // paged_attention_workspace_bytes(config) bytes, 256-aligned
};
QUIRE_MEMBERS(PagedAttentionPlanParams,
              QUIRE_REQUIRED(config, num_seqs, query_start_loc, seq_lens, block_table_rows, workspace));

struct PagedAttentionParams {
  static constexpr char kName[] = "paged_attention";
  PagedAttentionConfig config;
  DType dtype = DType::kBFloat16;  // of query and out
  float softmax_scale = 0;
  const void* query = nullptr;  // [num_tokens, num_q_heads, head_dim], rows stride_query_token apart
  int64_t stride_query_token = 0;
  // [num_blocks, block_size, num_kv_heads, head_dim], of which each block is contiguous.
  const void* key_cache = nullptr;
  const void* value_cache = nullptr;
  int32_t block_size = 0;    // CUDA: a power of two, at least 16
  int64_t stride_block = 0;  // elements between blocks of either cache; CUDA: a multiple of 8 slots
  void* out = nullptr;       // [num_tokens, num_q_heads, head_dim], rows stride_out_token apart
  int64_t stride_out_token = 0;
  const int32_t* block_tables = nullptr;  // [max_num_seqs, stride_block_table]
  int64_t stride_block_table = 0;
  float soft_cap = 0;            // scores become soft_cap * tanh(score / soft_cap); 0: they stay
  const float* sinks = nullptr;  // [num_q_heads], may be null: a score more of each row, without a value

  // CPU: the batch's geometry.
  int32_t num_seqs = 0;
  const int32_t* query_start_loc = nullptr;   // [num_seqs + 1]
  const int32_t* seq_lens = nullptr;          // [num_seqs]
  const int32_t* block_table_rows = nullptr;  // [num_seqs]

  // CUDA, all of these.
  void* workspace = nullptr;  // as left by the plan
  // No sequence of this step, nor of a replay of its graph, has more query tokens. Where this shows that
  // every sequence is small (a pure decode step), the kernel for long queries is not launched.
  int32_t max_query_len = 0;
  KVDType kv_dtype = KVDType::kSame;  // of key_cache and value_cache
  float k_scale = 1;                  // what the caches hold times this is the key, the value
  float v_scale = 1;
  // May be set where an earlier launch of the same step, over the same block tables and after this plan, is
  // before this one in the stream, and where keys before a sequence's query tokens were written by earlier
  // steps. Then what lies before the query tokens is read while the kernels before this one still run.
  bool follows_layer = false;
};
QUIRE_MEMBERS(PagedAttentionParams,
              QUIRE_REQUIRED(config, dtype, softmax_scale, query, stride_query_token, key_cache, value_cache,
                             block_size, stride_block, out, stride_out_token, block_tables,
                             stride_block_table),
              QUIRE_OPTIONAL(soft_cap, sinks, num_seqs, query_start_loc, seq_lens, block_table_rows,
                             workspace, max_query_len, kv_dtype, k_scale, v_scale, follows_layer));

}  // namespace quire
