// Causal attention of a mixed batch (decode, chunks of prompts, prompts behind a cached prefix) over a paged
// KV cache.
//
// Token j of request i, j in [0, query_len), stands at position seq_lens[i] - query_len + j and sees the keys
// at positions [0, that position]. The keys and values of this step's tokens must be in the cache already.
#pragma once

#include <cstdint>

#include "quire/cpu/dtype.h"

namespace quire::cpu {

struct PagedAttentionParams {
  DType dtype = DType::kFloat32;  // of query, key_cache, value_cache and out
  int32_t num_reqs = 0;
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_q_heads
  int32_t head_dim = 0;      // a multiple of 8 in [32, 256]
  int32_t block_size = 0;
  float softmax_scale = 0;

  const void* query = nullptr;  // [num_tokens, num_q_heads, head_dim], rows stride_query_token apart
  int64_t stride_query_token = 0;
  const void* key_cache = nullptr;  // [num_blocks, block_size, num_kv_heads, head_dim]; a block is contiguous
  const void* value_cache = nullptr;  // as key_cache
  int64_t stride_block = 0;           // elements between blocks of either cache
  void* out = nullptr;                // [num_tokens, num_q_heads, head_dim], rows stride_out_token apart
  int64_t stride_out_token = 0;

  const int32_t* block_tables = nullptr;  // [max_num_seqs, stride_block_table]
  int64_t stride_block_table = 0;
  const int32_t* block_table_rows = nullptr;  // [num_reqs]
  const int32_t* query_start_loc = nullptr;   // [num_reqs + 1]
  const int32_t* seq_lens = nullptr;          // [num_reqs]
};

// Accumulates in float32. Throws InvalidArgument for sizes that are not supported; the arrays are trusted.
void paged_attention(const PagedAttentionParams& params);

}  // namespace quire::cpu
