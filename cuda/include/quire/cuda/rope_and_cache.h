// Rotary position embedding of queries and keys, and the store of keys and values into the paged cache, in
// one launch.
//
// Pairs are (d, d + head_dim / 2), as in Hugging Face's Llama. Computed in float32 and rounded once.
// Optionally each query and key head is normalised first, as Qwen3 does, and the caches hold float8 e4m3 of x
// / scale.
//
// The launch overlaps the kernels in front of it (cuda/src/common/dependency.cuh). cos, sin, q_norm and
// k_norm, and with places_are_settled positions and slot_mapping, are read before those have ended.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "quire/kernels/dtype.h"

namespace quire::cuda {

struct RopeAndCacheParams {
  DType dtype = DType::kBFloat16;  // of query, key, value and, with kSame, the caches
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
  const int32_t* positions = nullptr;     // [num_tokens]; one outside [0, max_position) rotates to NaN
  const int64_t* slot_mapping = nullptr;  // [num_tokens]; outside [0, num_slots), as -1: not stored
  void* key_cache = nullptr;              // [num_blocks, block_size, num_kv_heads, head_dim]; a block is
                                          // contiguous
  void* value_cache = nullptr;            // as key_cache
  int64_t num_slots = 0;                  // num_blocks * block_size
  int32_t block_size = 0;                 // a power of two
  int64_t stride_block = 0;               // elements between blocks of either cache, a multiple of 16 bytes

  KVDType kv_dtype = KVDType::kSame;
  float k_scale = 1.0f;  // of a float8 cache: it holds x * (1 / scale), saturated
  float v_scale = 1.0f;
  const void* q_norm =
      nullptr;  // [head_dim] of dtype: x / sqrt(mean(x^2) + norm_eps) * q_norm before the rotation,
  const void* k_norm = nullptr;  // rounded as launch_rms_norm does; null, both of them: no norm
  float norm_eps = 0;
  // positions and slot_mapping were written by a copy, or by a kernel that a launch without overlap follows,
  // and stay as they are until the step is over.
  bool places_are_settled = false;
};

// Pointers and stride_token must be multiples of 16 bytes. Throws std::invalid_argument for unsupported sizes
// and std::runtime_error when the launch fails.
void launch_rope_and_cache(const RopeAndCacheParams& params, cudaStream_t stream);

}  // namespace quire::cuda
