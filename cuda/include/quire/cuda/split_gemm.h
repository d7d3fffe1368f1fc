// out = x W^T for 65 to 256 rows of x, where whole tiles of out are too few for the device: k is cut among the
// blocks of a cluster, which add up their sums through the cluster's shared memory.
//
//   out[m, n] = sum over k of x[m, k] W[n, k] (+ bias[n]), accumulated in float32, rounded once
//
// - A row of out does not depend on the other rows, and repeats; it depends on num_rows, which decides how k
//   is cut.
// - No workspace. Any number of calls may overlap.
// - Launched with programmatic dependent launch: the first tiles of W are loaded while the kernels in front
//   still run. So W must not be written by a kernel of the same stream shortly before; everything else may
//   be.
// - 210 KB of shared memory per block, one block per SM.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "quire/cuda/wide_gemm.h"

namespace quire::cuda {

// How the work is spread; 0: chosen from the sizes.
struct SplitGemmTuning {
  int32_t parts = 0;    // of k: 1 to 8
  int32_t columns = 0;  // of out, of a tile: 64, 128
  int32_t rows = 0;     // of x, of a tile: 96, 128
};

struct SplitGemmParams {
  int32_t num_rows = 0;        // any number; tuned for 65 to 256
  const void* x = nullptr;     // [num_rows, k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;        // a multiple of 8
  const void* bias = nullptr;  // [n]; may be null
  void* out = nullptr;         // [num_rows, n], rows stride_out apart; 16-byte aligned
  int64_t stride_out = 0;      // a multiple of 8
  bool overlaps = true;        // programmatic dependent launch
  SplitGemmTuning tuning;
};

// weight: as make_wide_gemm_weight() gives it, without silu_mul. Throws std::invalid_argument for what it does
// not support, std::runtime_error when the launch fails.
void launch_split_gemm(const WideGemmWeight& weight, const SplitGemmParams& params, cudaStream_t stream);

}  // namespace quire::cuda
