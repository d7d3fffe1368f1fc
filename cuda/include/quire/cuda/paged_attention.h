// Causal attention of a mixed batch (decode, chunks of prompts, prompts behind a cached prefix) over a paged
// KV cache, on the GPU.
//
// Token j of request i, j in [0, query_len), stands at position seq_lens[i] - query_len + j and sees the keys
// at positions [0, that position]. The keys and values of this step's tokens must be in the cache already.
//
// Two calls: launch_paged_attention_plan once per step, then launch_paged_attention once per layer. The plan
// reads the batch geometry on the device and cuts it into pieces of work for a fixed grid, so both can be
// captured in a CUDA graph and replayed for other batches. Requests without query tokens cost nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "quire/kernels/dtype.h"

namespace quire::cuda {

enum class AttentionDType : int32_t { kBFloat16 = 0, kFloat16 = 1 };

// What the workspace is sized by. The same values must be given to the plan and to every layer.
struct PagedAttentionConfig {
  int32_t num_q_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_q_heads
  int32_t head_dim = 0;      // 64, 96, 128 or 256
  int32_t max_num_reqs = 0;
  int32_t max_num_tokens = 0;  // query tokens in a step
  int32_t max_seq_len = 0;
  int32_t num_sms = 0;  // multiprocessors to fill
  // 0: cut for the best balance. Otherwise a multiple of 64: contexts of decoding requests are cut at
  // multiples of this many keys and those of prompts nowhere, whatever the batch, so that a request's result
  // does not depend on the requests beside it.
  int32_t split_keys = 0;
  // 0: all keys up to its own position are seen. Otherwise the token at position p sees (p - window, p]; keys
  // before are neither planned nor loaded.
  int32_t window = 0;
};

struct PagedAttentionPlanParams {
  PagedAttentionConfig config;
  const int32_t* num_reqs = nullptr;          // [1], at most max_num_reqs
  const int32_t* query_start_loc = nullptr;   // [num_reqs + 1]
  const int32_t* seq_lens = nullptr;          // [num_reqs]
  const int32_t* block_table_rows = nullptr;  // [num_reqs]
  void* workspace = nullptr;                  // paged_attention_workspace_bytes(config) bytes, 256-aligned
};

struct PagedAttentionParams {
  PagedAttentionConfig config;
  AttentionDType dtype = AttentionDType::kBFloat16;  // of query and out
  int32_t block_size = 0;                            // a power of two, at least 16
  float softmax_scale = 0;
  // No request of this step, nor of a replay of its graph, has more query tokens. Where this shows that every
  // request is small (a pure decode step), the kernel for long queries is not launched.
  int32_t max_query_len = 0;

  const void* query = nullptr;  // [num_tokens, num_q_heads, head_dim], rows stride_query_token apart
  int64_t stride_query_token = 0;
  const void* key_cache = nullptr;  // [num_blocks, block_size, num_kv_heads, head_dim]; a block is contiguous
  const void* value_cache = nullptr;  // as key_cache
  int64_t stride_block = 0;           // elements between blocks of either cache: a multiple of 8 slots
  void* out = nullptr;                // [num_tokens, num_q_heads, head_dim], rows stride_out_token apart
  int64_t stride_out_token = 0;

  const int32_t* block_tables = nullptr;  // [max_num_seqs, stride_block_table]
  int64_t stride_block_table = 0;
  void* workspace = nullptr;  // as left by launch_paged_attention_plan

  KVDType kv_dtype = KVDType::kSame;  // of key_cache and value_cache
  float k_scale = 1, v_scale = 1;     // what the caches hold times this is the key, the value
  float soft_cap = 0;                 // scores become soft_cap * tanh(score / soft_cap); 0: they stay
  // May be set where an earlier launch_paged_attention of the same step, over the same plan and block tables,
  // is in front of this one in the stream, and where keys in front of a request's query tokens were written
  // by earlier steps. Then what lies in front of the query tokens is read while the kernels in front still
  // run.
  bool follows_layer = false;
};

size_t paged_attention_workspace_bytes(const PagedAttentionConfig& config);

// Both throw std::invalid_argument for sizes that are not supported and std::runtime_error when a launch
// fails; the arrays are trusted.
void launch_paged_attention_plan(const PagedAttentionPlanParams& params, cudaStream_t stream);
void launch_paged_attention(const PagedAttentionParams& params, cudaStream_t stream);

}  // namespace quire::cuda
