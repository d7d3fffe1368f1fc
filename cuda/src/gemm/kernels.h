// Between the launch of a skinny GEMM and its kernels.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/launch.h"
#include "quire/kernels/gemm.h"
#include "tensor_map.h"

namespace quire::cuda::gemm {

// How a block's shared memory is divided.
struct Layout {
  int num_stages, num_x_stages;
  int exchange, staging, barriers;  // offsets
};

inline constexpr int kGroupUnit = 32;  // columns
inline constexpr int kWholeRow = 30;   // as a shift

// Groups of columns of a row of W, of four bits, that share a scale and a zero. They come with a load of W.
struct Groups {
  CUtensorMap scales, zeros;  // boxes of the groups of a load x 64 rows of a tile
  int32_t shift;              // a group is kGroupUnit << shift columns; kWholeRow: all
  int32_t box_bytes;
  bool has_zeros;
};

struct KernelArgs {
  CUtensorMap weight;  // boxes of 64 rows of a tile x 128 bytes
  CUtensorMap x;       // boxes of the padded number of rows x 64 elements; of one row when rows are given
  int32_t num_rows;
  int32_t n_out;          // columns of out
  int32_t num_tiles;      // of W's rows
  int32_t num_steps;      // of k, a load of W each; parts begin at one
  int32_t parts_log2;     // parts of k, one for each block of a cluster
  int32_t trigger;        // see SkinnyGemmTuning
  int32_t in_flight;      // at most, of W's loads
  int32_t blocks_per_sm;  // that shall fit
  Layout layout;
  bool silu_mul;
  bool is_dynamic;  // blocks take another tile when they are through with one: parts is 1
  bool is_wide;     // out is written 16 bytes at a time
  const int32_t* rows;
  const void* bias;
  void* out;
  int64_t stride_out;
  uint32_t* taken;  // tiles taken beyond each block's first, 0 between launches
  // Of weights narrower than x:
  int32_t num_x_steps;  // of k, a load of x each
  int32_t num_scales;   // of a row of W, of float8
  const float* scales;  // [rows of W, num_scales]
  Groups groups;
  int32_t stage_bytes;  // of W's ring, of four bits
};

inline constexpr int kBoxRows = 64;                             // of W, in one copy
inline constexpr int kStepColumns = 2 * kBoxColumns;            // of x, in one stage
inline constexpr int kLoadBytes = kBoxRows * kStepColumns * 2;  // of W, in one stage

// Of four bits, of a row of W, in one stage.
inline constexpr int kGroupUnits = kLoadBytes * 2 / kBoxRows / kGroupUnit;

constexpr int bits_of(WeightFormat format) {
  return format == WeightFormat::k16Bits ? 16 : format == WeightFormat::kFloat8 ? 8 : 4;
}

template <WeightFormat kFormat>
inline constexpr bool kIsFourBit = bits_of(kFormat) == 4;

// Of a stage of W's ring: a load of W, and of four bits its groups.
template <WeightFormat kFormat>
__host__ __device__ int32_t stage_bytes(const KernelArgs& a) {
  return kIsFourBit<kFormat> ? a.stage_bytes : kLoadBytes;
}

// Of a weight of four bits.
Groups groups_of(const SkinnyGemmWeight& weight);

// padded_rows: 8, 16, 24, 32 and of 16 bits 48 or 64. Fills in config's block and shared memory, and the
// stages.
template <class T, WeightFormat kFormat>
void launch_kernel(int padded_rows, LaunchConfig config, KernelArgs args);

}  // namespace quire::cuda::gemm
