// Between the launch of a wide GEMM and its kernels.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/launch.h"
#include "tensor_map.h"
#include "wide_schedule.h"

namespace quire::cuda::gemm::wide {

// A block's tile of W is two boxes of kWeightBox rows: with silu_mul, of gate and of up. Of two sizes, since
// one of them may divide the columns of out more evenly among the clusters.
inline constexpr int kWeightBox = 128, kSmallWeightBox = 112;

struct KernelArgs {
  CUtensorMap weight;  // boxes of kBox rows
  CUtensorMap x;       // boxes of kRowBox rows
  CUtensorMap out;     // the same
  Schedule schedule;
  int32_t n_out;       // columns of out
  int32_t num_steps;   // of k
  int32_t second_box;  // rows of W between the two boxes of a tile
  const void* bias;
  // Of float8 operands: of the rows of x and of W. out is the product times both.
  const float* x_scale;
  const float* weight_scale;
};

// Element: of x and W, T or float8; T: of out. kBox: kWeightBox, with kSiluMul also kSmallWeightBox. Fills in
// config's block, cluster and shared memory.
template <class Element, class T, bool kSiluMul, int kBox>
void launch_kernel(LaunchConfig config, const KernelArgs& args);

}  // namespace quire::cuda::gemm::wide
