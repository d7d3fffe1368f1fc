// What writes the KV cache and its block tables.
//
// A cache is [num_blocks, block_size, num_kv_heads, head_dim] of one layer's keys, or values. Each of its
// blocks is contiguous; the blocks of a layer lie stride_block elements apart.
#pragma once

#include <cstdint>

#include "quire/kernels/dtype.h"
#include "quire/members.h"

namespace quire {

// Rotary position embedding of queries, in place, and of keys, and the store of keys and values into the
// paged cache. Pairs are (d, d + head_dim / 2), as in Hugging Face's Llama. Computed in float32 and rounded
// once. With norms, each query and key head is normalised first, as Qwen3 does.
//
// A position outside [0, max_position), or a slot outside [-1, num_slots): the CPU throws InvalidArgument
// before anything is written; CUDA rotates to NaN, and does not store.
struct RopeAndCacheParams {
  static constexpr char kName[] = "rope_and_cache";
  DType dtype = DType::kBFloat16;  // of qkv and, with kSame, the caches
  int32_t num_tokens = 0;
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;  // a multiple of 8 in [32, 256]
  void* qkv = nullptr;  // [num_tokens, num_q_heads + 2 * num_kv_heads, head_dim]: queries, keys, values; only
                        // queries change
  int64_t stride_token = 0;    // between rows of qkv; CUDA: a multiple of 16 bytes
  const float* cos = nullptr;  // [max_position, head_dim / 2]
  const float* sin = nullptr;  // [max_position, head_dim / 2]
  int32_t max_position = 0;
  const int32_t* positions = nullptr;     // [num_tokens]
  const int64_t* slot_mapping = nullptr;  // [num_tokens]; -1: key and value of this token are not stored
  void* key_cache = nullptr;
  void* value_cache = nullptr;
  int64_t num_slots = 0;     // num_blocks * block_size
  int32_t block_size = 0;    // CUDA: a power of two
  int64_t stride_block = 0;  // CUDA: a multiple of 16

  KVDType kv_dtype = KVDType::kSame;
  float k_scale = 1.0f;  // of a float8 cache: it holds x * (1 / scale), saturated
  float v_scale = 1.0f;
  // [head_dim] of dtype: x / sqrt(mean(x^2) + norm_eps) * q_norm before the rotation, rounded as rms_norm
  // does; null, both of them: no norm.
  const void* q_norm = nullptr;
  const void* k_norm = nullptr;
  float norm_eps = 0;
  float norm_weight_offset = 0;
  bool norm_rounds_once = false;
  // CUDA: positions and slot_mapping were written by a copy, or by a kernel that a launch without overlap
  // follows, and stay as they are until the step is over.
  bool places_are_settled = false;
};
QUIRE_MEMBERS(RopeAndCacheParams,
              QUIRE_REQUIRED(dtype, num_tokens, num_q_heads, num_kv_heads, head_dim, qkv, stride_token, cos,
                             sin, max_position, positions, slot_mapping, key_cache, value_cache, num_slots,
                             block_size, stride_block),
              QUIRE_OPTIONAL(kv_dtype, k_scale, v_scale, q_norm, k_norm, norm_eps, norm_weight_offset,
                             norm_rounds_once, places_are_settled));

// CUDA: block_tables[updates[i][0]] = updates[i][1] for i < *num_updates. The grid follows from max_updates
// alone, so a captured launch serves any count up to it. An index outside the tables is skipped; of two
// updates of the same index either may win.
struct BlockTableUpdateParams {
  static constexpr char kName[] = "update_block_tables";
  const int32_t* updates = nullptr;  // [max_updates, 2]: index into the flat tables, block id; 8-byte aligned
  const int32_t* num_updates = nullptr;  // on the device; more than max_updates counts as max_updates
  int32_t max_updates = 0;
  int32_t* block_tables = nullptr;  // [num_entries] = [max_num_seqs, stride], flat
  int64_t num_entries = 0;
};
QUIRE_MEMBERS(BlockTableUpdateParams,
              QUIRE_REQUIRED(updates, num_updates, max_updates, block_tables, num_entries));

// CUDA: cache[copies[i][1]] = cache[copies[i][0]] for i < num_copies. No destination may be a source, or
// twice a destination. A copy of or to a block outside the cache is skipped. Not to be captured: launched
// only before the steps that have copies.
struct CopyBlocksParams {
  static constexpr char kName[] = "copy_blocks";
  const int32_t* copies = nullptr;  // [num_copies, 2]: source, destination; 8-byte aligned
  int32_t num_copies = 0;
  void* cache = nullptr;  // [num_blocks, block_bytes]: keys and values of all layers; 16-byte aligned
  int32_t num_blocks = 0;
  int64_t block_bytes = 0;  // a multiple of 16
};
QUIRE_MEMBERS(CopyBlocksParams, QUIRE_REQUIRED(copies, num_copies, cache, num_blocks, block_bytes));

}  // namespace quire
