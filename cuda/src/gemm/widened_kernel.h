// Between the launch of a widened GEMM and its kernels.
#pragma once

#include "kernels.h"
#include "split_kernel.h"

namespace quire::cuda::gemm::split {

// weight: as make_skinny_gemm_weight() describes it. weight_scale and num_scales: of float8, [rows of W,
// num_scales].
struct WidenedArgs : KernelArgs {
  Groups groups;  // of four bits
  bool silu_mul;  // every 16 rows of a tile are 8 of gate and the 8 of up that belong to them
};

// Stages of x, of 64 columns, for each of W.
constexpr int x_steps_of(WeightFormat format) { return format == WeightFormat::kFloat8 ? 2 : 8; }

// T: of x and out. Else as launch_kernel().
template <WeightFormat kFormat, class T, int kRows, int kGroups>
void launch_widened_kernel(LaunchConfig config, const WidenedArgs& args);

}  // namespace quire::cuda::gemm::split
