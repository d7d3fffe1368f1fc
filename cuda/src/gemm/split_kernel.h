// Between the launch of a split GEMM and its kernels.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/launch.h"
#include "tensor_map.h"

namespace quire::cuda::gemm::split {

// A tile: rows of x, and rows of W for each warpgroup.
inline constexpr int kTileRows = 128, kSmallTileRows = 96;
// Of float8 operands, which few rows take as well.
inline constexpr int kFewRows = 32, kSomeRows = 64;
inline constexpr int kGroupColumns = 64;
inline constexpr int kMaxParts = 8;  // blocks that a cluster may have on every device

struct KernelArgs {
  CUtensorMap weight;  // boxes of a tile's rows of W
  CUtensorMap x;       // boxes of a tile's rows of x
  int32_t num_rows;    // of x
  int32_t row_tiles;
  int32_t n_out;      // columns of out
  int32_t num_steps;  // of k
  int32_t parts;      // of k, one for each block of a cluster; at most num_steps
  const void* bias;
  void* out;
  int64_t stride_out;
  // Of float8 operands, by which products are multiplied: of x [num_scales, num_rows], of W [n_out,
  // num_scales].
  const float* x_scale;
  const float* weight_scale;
  int32_t num_scales;  // of a row
};

// kNone: x and W are of the type of out. Else they are float8, with a scale for each row of both, or one for
// each 128 columns of it.
enum class Scaling { kNone, kRows, kBlocks };

// T: of out. kRows: of x, of a tile; kGroups: warpgroups that multiply, 1 or 2; kBlocksPerSm: that fit.
// kSiluMul: of two groups, one multiplies rows of gate and the other the rows of up that belong to them.
// Fills in config's block and shared memory.
template <class T, Scaling kScaling, int kRows, int kGroups, int kBlocksPerSm, bool kSiluMul>
void launch_kernel(LaunchConfig config, const KernelArgs& args);

}  // namespace quire::cuda::gemm::split
