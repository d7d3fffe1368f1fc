// GEMMs of the CUDA backend; on the CPU they are torch's.
//
//   out[m, n] = sum over k of x[m, k] W[n, k] (+ bias[n]), accumulated in float32, rounded once
//
// or, with silu_mul, out = silu(x gate^T) * (x up^T) without ever writing gate and up, where gate and up are
// rounded to the type, silu to the type, and the product to the type, as silu_mul after a GEMM.
//
// W is [n, k] as checkpoints store it, so the same tensor serves other GEMMs for more rows. bfloat16 or
// float16; the GEMM for few rows also takes weights of fewer bits (WeightFormat). A row of out does not
// depend on the other rows, and repeats.
//
// Float8: the sum times x_scale[m] * scale[n], in float32, where x and W are e4m3 with the columns of
// kFloat8Columns. The tensor cores keep about 14 bits of a sum while they add up: the error grows with k, to
// about 1 % at 16,384.
//
// Launched with programmatic dependent launch: W is loaded while the kernels before this one still run. So W
// must not be written by a kernel of the same stream shortly before; everything else may be.
#pragma once

#include <cstdint>

#include "quire/kernels/dtype.h"
#include "quire/members.h"

namespace quire {

inline constexpr int kSkinnyGemmMaxRows = 64;
inline constexpr int kWidenedGemmMaxRows = 32;  // with a weight of fewer bits than x

// How the elements of a weight are stored.
// kFloat8: e4m3, columns in the order of kFloat8Columns; w is the element times its scale.
// kInt4: 0 to 15, columns in the order of four_bit_column(); w is (element - zero) * scale, rounded once.
// kMxfp4: e2m1, columns as kInt4; w is the element times its scale, rounded once.
enum class WeightFormat : int32_t { k16Bits = 0, kFloat8 = 1, kInt4 = 2, kMxfp4 = 3 };

// What a weight of fewer bits than x has beside its elements. Does not own the memory, which must stay where
// it is.
struct WeightScales {
  static constexpr char kName[] = "WeightScales";
  WeightFormat format = WeightFormat::k16Bits;
  // Float8: float32 [n, num_scales]. Four bits: of the type of x, [num_scales, n rounded up to a multiple of
  // 64], 16-byte aligned.
  const void* scales = nullptr;
  // Of a row: 1, or one for each 128 columns; of four bits also for each 64 or 32, of mxfp4 only for 32.
  int32_t num_scales = 0;
  const uint16_t* zeros = nullptr;  // of kInt4, 0 to 15, laid out as scales; null: all 8
};

// W, described once for the copy engine. Does not own the memory, which must stay where it is.
struct SkinnyGemmWeight {
  static constexpr char kName[] = "SkinnyGemmWeight";
  alignas(64) unsigned char tensor_map[128];
  alignas(64) unsigned char scales_map[128];  // of four bits
  alignas(64) unsigned char zeros_map[128];   // of four bits with zeros
  const void* data = nullptr;                 // [n, k], contiguous
  WeightScales scales;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBFloat16;  // of x and out
  uint32_t* taken = nullptr;       // on the device, for the kernel
  bool silu_mul = false;           // out is [num_rows, n / 2]; W's first n / 2 rows are gate
};

// W. Does not own the memory.
struct WideGemmWeight {
  static constexpr char kName[] = "WideGemmWeight";
  const void* data = nullptr;  // [n, k], contiguous
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBFloat16;  // of out and bias, and without scale of x and W
  bool silu_mul = false;           // out is [num_rows, n / 2]; W's first n / 2 rows are gate
  const float* scale = nullptr;    // [n, num_scales]; given: x and W are float8 e4m3, as above
  int32_t num_scales = 1;          // of a row; for split_gemm also one for each 128 columns
};

// How the work of skinny_gemm is cut; 0 or -1: chosen. For measurements.
struct SkinnyGemmTuning {
  static constexpr char kName[] = "SkinnyGemmTuning";
  int32_t parts = 0;          // of k, each of a block: 1, 2, 4. Changes rounding
  int32_t num_blocks = 0;     // at most, where k is not cut
  int32_t blocks_per_sm = 0;  // that find room for their rings: 2 or 3
  int32_t trigger = -1;       // 16 KB loads left to multiply when the next kernel's blocks may come
  int32_t in_flight = 0;      // 16 KB loads that a block has on their way at a time
};
QUIRE_MEMBERS(SkinnyGemmTuning, QUIRE_OPTIONAL(parts, num_blocks, blocks_per_sm, trigger, in_flight));

// For few rows of x: the GEMMs of a decode step, bound by reading W once.
//
// - With is_invariant a row of out does not depend on num_rows either (same bits in every batch).
// - No workspace: partial sums meet in the shared memory of a cluster. Calls of one weight, though, must not
//   run on several streams at once: its blocks share out its tiles through a counter.
// - Two blocks fit on an SM, of one GEMM or of two consecutive ones.
struct SkinnyGemmParams {
  static constexpr char kName[] = "skinny_gemm";
  const SkinnyGemmWeight* weight = nullptr;
  int32_t num_rows = 0;     // 0 to kSkinnyGemmMaxRows or kWidenedGemmMaxRows
  const void* x = nullptr;  // [num_rows, k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;     // a multiple of 8
  void* out = nullptr;      // [num_rows, n] or [num_rows, n / 2], rows stride_out apart
  int64_t stride_out = 0;
  const void* bias = nullptr;  // [n]; may be null
  const int32_t* rows =
      nullptr;                // [num_rows]; given: row m of the product is x[rows[m]], 0 when out of range
  int32_t num_x_rows = 0;     // rows of x, when rows is given
  bool overlaps = true;       // programmatic dependent launch
  bool is_invariant = false;  // costs time above 32 rows
  SkinnyGemmTuning tuning = {};
};
QUIRE_MEMBERS(SkinnyGemmParams, QUIRE_REQUIRED(weight, num_rows, x, stride_x, out, stride_out),
              QUIRE_OPTIONAL(bias, rows, num_x_rows, overlaps, is_invariant, tuning));

// How the work of wide_gemm is spread; 0 or -1: chosen from the sizes. For measurements: changes no bit of
// out.
struct WideGemmTuning {
  static constexpr char kName[] = "WideGemmTuning";
  int32_t pair = -1;    // what the two blocks of a cluster share: 0 tiles of W, 1 tiles of x
  int32_t group = 0;    // clusters' tiles along the rows of x that are walked before the next tile of W
  int32_t columns = 0;  // of out, of a tile with silu_mul: 128, 112
  int32_t halves = -1;  // 1: the last tiles are cut in half, 0: not
};
QUIRE_MEMBERS(WideGemmTuning, QUIRE_OPTIONAL(pair, group, columns, halves));

// For many rows of x: the GEMMs of a step with prompts, bound by arithmetic.
//
// - A row of out does not depend on num_rows (same bits in every batch).
// - No workspace. Any number of calls may overlap.
// - 225 KB of shared memory per block, one block per SM, blocks in clusters of two.
struct WideGemmParams {
  static constexpr char kName[] = "wide_gemm";
  const WideGemmWeight* weight = nullptr;
  int32_t num_rows = 0;
  const void* x = nullptr;     // [num_rows, k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;        // a multiple of 8
  void* out = nullptr;         // [num_rows, n] or [num_rows, n / 2], rows stride_out apart; 16-byte aligned
  int64_t stride_out = 0;      // a multiple of 8
  const void* bias = nullptr;  // [n], 4-byte aligned; may be null
  const float* x_scale = nullptr;  // [num_scales, num_rows], where the weight has scales
  bool overlaps = true;            // programmatic dependent launch
  WideGemmTuning tuning = {};
};
QUIRE_MEMBERS(WideGemmParams, QUIRE_REQUIRED(weight, num_rows, x, stride_x, out, stride_out),
              QUIRE_OPTIONAL(bias, x_scale, overlaps, tuning));

// How the work of split_gemm is spread; 0: chosen from the sizes.
struct SplitGemmTuning {
  static constexpr char kName[] = "SplitGemmTuning";
  int32_t parts = 0;          // of k: 1 to 8
  int32_t columns = 0;        // of out, of a tile: 64, 128
  int32_t rows = 0;           // of x, of a tile: 96, 128, of float8 also 32, 64
  int32_t blocks_per_sm = 0;  // that find room: 1; with tiles of 32 or 64 rows also 2
};
QUIRE_MEMBERS(SplitGemmTuning, QUIRE_OPTIONAL(parts, columns, rows, blocks_per_sm));

// For 65 to 256 rows of x, where whole tiles of out are too few for the device: k is cut among the blocks of
// a cluster, which add up their sums through the cluster's shared memory.
//
// - A row of out depends on num_rows, which decides how k is cut.
// - No workspace. Any number of calls may overlap.
// - 210 KB of shared memory per block, one block per SM.
struct SplitGemmParams {
  static constexpr char kName[] = "split_gemm";
  const WideGemmWeight* weight = nullptr;  // silu_mul: float8, up to 64 rows
  int32_t num_rows = 0;                    // any number; tuned for 65 to 256
  const void* x = nullptr;                 // [num_rows, k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;                    // a multiple of 8
  void* out = nullptr;                     // [num_rows, n], rows stride_out apart; 16-byte aligned
  int64_t stride_out = 0;                  // a multiple of 8
  const void* bias = nullptr;              // [n]; may be null
  const float* x_scale = nullptr;          // [num_scales, num_rows], where the weight has scales
  bool overlaps = true;                    // programmatic dependent launch
  SplitGemmTuning tuning = {};
};
QUIRE_MEMBERS(SplitGemmParams, QUIRE_REQUIRED(weight, num_rows, x, stride_x, out, stride_out),
              QUIRE_OPTIONAL(bias, x_scale, overlaps, tuning));

// For more than 32 rows of x with a weight of fewer bits than x, which is widened in registers; k is cut as
// by split_gemm where whole tiles are too few for the device.
//
// - With tuning.parts 1 a row of out does not depend on num_rows, else it does.
// - No workspace. Any number of calls may overlap.
// - 210 KB of shared memory per block, one block per SM.
struct WidenedGemmParams {
  static constexpr char kName[] = "widened_gemm";
  const SkinnyGemmWeight* weight = nullptr;  // whose columns of out (n, or n / 2) are a multiple of 8
  int32_t num_rows = 0;                      // any number
  const void* x = nullptr;                   // [num_rows, k], rows stride_x apart; 16-byte aligned
  int64_t stride_x = 0;                      // a multiple of 8
  void* out = nullptr;         // [num_rows, n] or [num_rows, n / 2], rows stride_out apart; 16-byte aligned
  int64_t stride_out = 0;      // a multiple of 8
  const void* bias = nullptr;  // [n]; may be null
  bool overlaps = true;        // programmatic dependent launch
  SplitGemmTuning tuning = {};
};
QUIRE_MEMBERS(WidenedGemmParams, QUIRE_REQUIRED(weight, num_rows, x, stride_x, out, stride_out),
              QUIRE_OPTIONAL(bias, overlaps, tuning));

}  // namespace quire
