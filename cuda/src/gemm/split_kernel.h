// Between the launch of a split GEMM and its kernels.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/launch.h"
#include "tensor_map.h"

namespace quire::cuda::gemm::split {

// A tile: rows of x, and rows of W for each warpgroup.
inline constexpr int kTileRows = 128, kSmallTileRows = 96;
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
  // Of float8 operands: of the rows of x and of W. out is the product times both.
  const float* x_scale;
  const float* weight_scale;
};

// Element: of x and W, T or float8; T: of out. kRows: of x, of a tile: kTileRows or kSmallTileRows; kGroups:
// warpgroups that multiply, 1 or 2. Fills in config's block and shared memory.
template <class Element, class T, int kRows, int kGroups>
void launch_kernel(LaunchConfig config, const KernelArgs& args);

}  // namespace quire::cuda::gemm::split
