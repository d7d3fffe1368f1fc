// out = x W^T for few rows of x: the GEMMs of a decode step, bound by reading W once.
//
//   out[m, n] = sum over k of x[m, k] W[n, k] (+ bias[n]), accumulated in float32, rounded once
//
// W is [n, k] as checkpoints store it, so the same tensor serves other GEMMs for more rows.
//
// - A row of out does not depend on the other rows and repeats; with is_invariant it does not depend on
// num_rows
//   either (same bits in every batch).
// - No workspace: partial sums meet in the shared memory of a cluster. Calls of one weight, though, must not
// run
//   on several streams at once: its blocks share out its tiles through a counter.
// - Launched with programmatic dependent launch: W is loaded while the kernels in front still run. So W must
//   not be written by a kernel of the same stream shortly before; everything else may be.
// - Two blocks fit on an SM, of one GEMM or of two consecutive ones.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "quire/kernels/dtype.h"

namespace quire::cuda {

inline constexpr int kSkinnyGemmMaxRows = 64;

// W, described once for the copy engine. Does not own the memory, which must stay where it is.
struct SkinnyGemmWeight {
  alignas(64) unsigned char tensor_map[128];
  const void* data = nullptr;  // [n, k], contiguous
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBFloat16;
  uint32_t* taken = nullptr;  // on the device, for the kernel
  bool silu_mul = false;  // out = silu(x gate^T) * (x up^T): [num_rows, n / 2]; W's first n / 2 rows are gate
};

// w: 16-byte aligned; k: a multiple of 8, at least 64; n: at least 1, with silu_mul a multiple of 16.
// bfloat16 or float16. Throws std::invalid_argument.
SkinnyGemmWeight make_skinny_gemm_weight(const void* w, int64_t n, int64_t k, DType dtype, bool silu_mul);

// How the work is cut; 0 or -1: chosen. For measurements.
struct SkinnyGemmTuning {
  int32_t parts = 0;          // of k, each of a block: 1, 2, 4. Changes rounding
  int32_t num_blocks = 0;     // at most, where k is not cut
  int32_t blocks_per_sm = 0;  // that find room for their rings: 2 or 3
  int32_t trigger = -1;       // 16 KB loads left to multiply when the next kernel's blocks may come
  int32_t in_flight = 0;      // 16 KB loads that a block has on their way at a time
};

// Rounding of silu_mul: gate and up to the type, silu to the type, the product to the type; as
// launch_silu_mul after a GEMM.
struct SkinnyGemmParams {
  int32_t num_rows = 0;        // 0 to kSkinnyGemmMaxRows
  const void* x = nullptr;     // [num_rows, k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;        // a multiple of 8
  const void* bias = nullptr;  // [n]; may be null
  const int32_t* rows =
      nullptr;             // [num_rows]; given: row m of the product is x[rows[m]], 0 when out of range
  int32_t num_x_rows = 0;  // rows of x, when rows is given
  void* out = nullptr;     // [num_rows, n] or [num_rows, n / 2], rows stride_out apart
  int64_t stride_out = 0;
  bool overlaps = true;       // programmatic dependent launch
  bool is_invariant = false;  // costs time above 32 rows
  SkinnyGemmTuning tuning;
};

// Throws std::invalid_argument for what it does not support, std::runtime_error when the launch fails.
void launch_skinny_gemm(const SkinnyGemmWeight& weight, const SkinnyGemmParams& params, cudaStream_t stream);

}  // namespace quire::cuda
