// out = x W^T for many rows of x: the GEMMs of a step with prompts, bound by arithmetic.
//
//   out[m, n] = sum over k of x[m, k] W[n, k] (+ bias[n]), accumulated in float32, rounded once
//
// or, with silu_mul, out = silu(x gate^T) * (x up^T) without ever writing gate and up. W is [n, k] as
// checkpoints store it.
//
// - A row of out does not depend on num_rows or on the other rows (same bits in every batch), and repeats.
// - No workspace. Any number of calls may overlap.
// - Launched with programmatic dependent launch: the first tiles of W are loaded while the kernels in front
//   still run. So W must not be written by a kernel of the same stream shortly before; everything else may
//   be.
// - 225 KB of shared memory per block, one block per SM, blocks in clusters of two.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "quire/kernels/dtype.h"

namespace quire::cuda {

// W. Does not own the memory.
struct WideGemmWeight {
  const void* data = nullptr;  // [n, k], contiguous
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBFloat16;
  bool silu_mul = false;  // out = silu(x gate^T) * (x up^T): [num_rows, n / 2]; W's first n / 2 rows are gate
};

// w: 16-byte aligned; k: a multiple of 8, at least 64; columns of out (n, or n / 2 with silu_mul): a multiple
// of 8. bfloat16 or float16. Throws std::invalid_argument.
WideGemmWeight make_wide_gemm_weight(const void* w, int64_t n, int64_t k, DType dtype, bool silu_mul);

// How the work is spread; 0 or -1: chosen from the sizes. For measurements: changes no bit of out.
struct WideGemmTuning {
  int32_t pair = -1;    // what the two blocks of a cluster share: 0 tiles of W, 1 tiles of x
  int32_t group = 0;    // clusters' tiles along the rows of x that are walked before the next tile of W
  int32_t columns = 0;  // of out, of a tile with silu_mul: 128, 112
  int32_t halves = -1;  // 1: the last tiles are cut in half, 0: not
};

// Rounding of silu_mul: gate and up to the type, silu to the type, the product to the type; as
// launch_silu_mul after a GEMM.
struct WideGemmParams {
  int32_t num_rows = 0;
  const void* x = nullptr;     // [num_rows, k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;        // a multiple of 8
  const void* bias = nullptr;  // [n], 4-byte aligned; may be null
  void* out = nullptr;         // [num_rows, n] or [num_rows, n / 2], rows stride_out apart; 16-byte aligned
  int64_t stride_out = 0;      // a multiple of 8
  bool overlaps = true;        // programmatic dependent launch
  WideGemmTuning tuning;
};

// Throws std::invalid_argument for what it does not support, std::runtime_error when the launch fails.
void launch_wide_gemm(const WideGemmWeight& weight, const WideGemmParams& params, cudaStream_t stream);

}  // namespace quire::cuda
