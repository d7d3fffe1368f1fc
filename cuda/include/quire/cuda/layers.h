// The small row-wise layers between the GEMMs of a Llama block, on the GPU.
//
// Two of them can store float8 instead: with out_scale given, out is e4m3 and row i of the result is about
// out[i] * out_scale[i]. The scale is the row's largest magnitude / 448, at least 1e-12 / 448, and out is the
// result, rounded to dtype as ever, times 448 / that magnitude, rounded to the nearest.
//
// Launches overlap the kernels in front of them (cuda/src/common/dependency.cuh). Only weights are read
// before those have ended.
//
// Every launch function throws std::invalid_argument for sizes it does not support and std::runtime_error
// when the launch fails, and can be captured in a CUDA graph. Results do not depend on the other rows. Rows
// whose pointers and strides are multiples of 16 bytes are read 16 bytes at a time, others element by
// element.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "quire/cuda/dtype.h"

namespace quire::cuda {

// residual given: residual += x, out = norm(residual) * weight; else out = norm(x) * weight.
// norm(x) = x / sqrt(mean(x^2) + eps) in float32. With a 16-bit type each of the sum, the norm and the
// product is rounded, in that order, as Hugging Face's Llama does.
struct RmsNormParams {
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t hidden_size = 0;  // at most 32768 (16-bit types), 16384 (float32), 8192 (element by element)
  float eps = 0;
  const void* x = nullptr;  // [num_rows, hidden_size], rows stride_x apart
  int64_t stride_x = 0;
  void* residual = nullptr;      // [num_rows, hidden_size], contiguous, updated in place; may be null
  const void* weight = nullptr;  // [hidden_size]
  void* out = nullptr;           // [num_rows, hidden_size], contiguous; may be x when stride_x = hidden_size
  float* out_scale = nullptr;    // [num_rows]; given: out is e4m3 and not x. null: out is of dtype
};
void launch_rms_norm(const RmsNormParams& params, cudaStream_t stream);

// out = silu(gate) * up, where silu(g) = g / (1 + exp(-g)); with a 16-bit type silu is rounded before the
// product.
struct SiluMulParams {
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t intermediate_size = 0;  // with out_scale at most 65536 (16-bit types), 32768, 8192, as in rms_norm
  const void* gate_up = nullptr;  // [num_rows, 2 * intermediate_size]: gate, then up
  int64_t stride_gate_up = 0;
  void* out = nullptr;         // [num_rows, intermediate_size], contiguous
  float* out_scale = nullptr;  // [num_rows]; given: out is e4m3. null: out is of dtype
};
void launch_silu_mul(const SiluMulParams& params, cudaStream_t stream);

// out[i] = table[id], where id is token_ids[i], or last_token_ids[~token_ids[i]] when token_ids[i] is
// negative: ~row stands for "the last id sampled for this row", which the host does not know yet. An id
// outside [0, vocab_size) after that, or a row outside last_token_ids, gives a row of NaN, so that it ends as
// id -1 of the sampler instead of a read out of range.
struct EmbeddingParams {
  DType dtype = DType::kBFloat16;
  int32_t num_tokens = 0;
  int32_t vocab_size = 0;
  int32_t hidden_size = 0;
  const int32_t* token_ids = nullptr;       // [num_tokens]
  const void* table = nullptr;              // [vocab_size, hidden_size], contiguous
  void* out = nullptr;                      // [num_tokens, hidden_size], contiguous
  const int32_t* last_token_ids = nullptr;  // [num_last_token_ids]; may be null when that is 0
  int32_t num_last_token_ids = 0;
};
void launch_embedding(const EmbeddingParams& params, cudaStream_t stream);

// out[j] = x[indices[j]] for up to two tensors at once, as the last layer gathers the rows of the tokens to
// sample from its attention output and its residual. An index outside [0, num_x_rows) gives a row of NaN.
struct GatherRowsParams {
  struct Rows {
    const void* x = nullptr;  // [num_x_rows, width], rows stride_x apart
    int64_t stride_x = 0;
    int32_t width = 0;
    void* out = nullptr;  // [num_rows, width], contiguous; apart from x
  };
  DType dtype = DType::kBFloat16;
  int32_t num_rows = 0;
  int32_t num_x_rows = 0;
  const int32_t* indices = nullptr;  // [num_rows]
  Rows first;
  Rows second;  // of width 0: one tensor only
};
void launch_gather_rows(const GatherRowsParams& params, cudaStream_t stream);

}  // namespace quire::cuda
