// Between the launch of a wide GEMM and its kernels.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/launch.h"
#include "tensor_map.h"

namespace quire::cuda::gemm::wide {

inline constexpr int kTileRows = 128;  // of x, of a block
inline constexpr int kRowBox = 64;     // rows of x and of out in one copy

// A block's tile of W is two boxes of kWeightBox rows: with silu_mul, of gate and of up. Of two sizes, since
// one of them may divide the columns of out more evenly among the clusters.
inline constexpr int kWeightBox = 128, kSmallWeightBox = 112;

// The tiles of a launch. A unit is two tiles that lie side by side along the rows of x (shared tile of W) or
// along the columns of out (shared tile of x): one for each block of a cluster. From unit num_whole on, the
// cluster's blocks compute one of the two tiles at a time, 64 rows each, and then the other: items are whole
// units and halves of units. Clusters take items in turns.
struct Schedule {
  int32_t row_units, column_units;
  int32_t group;      // row units that are walked before the next column unit
  int32_t num_whole;  // items that are whole units
  int32_t num_items;
  bool shares_x;
};

struct KernelArgs {
  CUtensorMap weight;  // boxes of kBox rows
  CUtensorMap x;       // boxes of kRowBox rows
  CUtensorMap out;     // the same
  Schedule schedule;
  int32_t num_rows;
  int32_t n_out;       // columns of out
  int32_t num_steps;   // of k
  int32_t second_box;  // rows of W between the two boxes of a tile
  const void* bias;
};

// kBox: kWeightBox, with kSiluMul also kSmallWeightBox. Fills in config's block, cluster and shared memory.
template <class T, bool kSiluMul, int kBox>
void launch_kernel(LaunchConfig config, const KernelArgs& args);

}  // namespace quire::cuda::gemm::wide
