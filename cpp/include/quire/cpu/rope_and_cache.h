// Rotary position embedding of queries and keys, and the store of keys and values into the paged cache.
//
// Pairs are (d, d + head_dim / 2), as in Hugging Face's Llama. Computed in float32 and rounded once.
// Optionally each query and key head is normalised first, as Qwen3 does.
#pragma once

#include <cstdint>

#include "quire/cpu/dtype.h"

namespace quire::cpu {

struct RopeAndCacheParams {
  DType dtype = DType::kFloat32;  // of query, key, value and the caches
  int32_t num_tokens = 0;
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;  // a multiple of 8 in [32, 256]
  int32_t max_position = 0;

  void* query = nullptr;        // [num_tokens, num_q_heads, head_dim], rotated in place
  const void* key = nullptr;    // [num_tokens, num_kv_heads, head_dim], unchanged: rotated into the cache
  const void* value = nullptr;  // [num_tokens, num_kv_heads, head_dim]
  int64_t stride_token = 0;  // between the rows of query, key and value: all three lie in one qkv activation

  const float* cos = nullptr;             // [max_position, head_dim / 2]
  const float* sin = nullptr;             // [max_position, head_dim / 2]
  const int32_t* positions = nullptr;     // [num_tokens]
  const int64_t* slot_mapping = nullptr;  // [num_tokens]; -1: key and value of this token are not stored
  void* key_cache = nullptr;    // [num_blocks, block_size, num_kv_heads, head_dim]; a block is contiguous
  void* value_cache = nullptr;  // as key_cache
  int64_t num_slots = 0;        // num_blocks * block_size
  int32_t block_size = 0;
  int64_t stride_block = 0;  // elements between blocks of either cache

  // [head_dim] of dtype: x / sqrt(mean(x^2) + norm_eps) * q_norm before the rotation, rounded as rms_norm
  // does; null: no norm.
  const void* q_norm = nullptr;
  const void* k_norm = nullptr;
  float norm_eps = 0;
};

// Throws InvalidArgument for unsupported sizes, and for a position or slot out of range before anything is
// written.
void rope_and_cache(const RopeAndCacheParams& params);

}  // namespace quire::cpu
