// Between the launch of a skinny GEMM and its kernels.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/launch.h"
#include "tensor_map.h"

namespace quire::cuda::gemm {

struct KernelArgs {
  CUtensorMap weight;  // boxes of 64 rows x 64 elements
  CUtensorMap x;       // boxes of the padded number of rows x 64 elements; of one row when rows are given
  int32_t num_rows;
  int32_t n_out;      // columns of out
  int32_t num_tiles;  // of W's rows
  int32_t num_steps;  // of k
  int32_t trigger;    // see SkinnyGemmTuning
  int32_t prefetch;
  bool silu_mul;
  bool is_wide;  // out is written four elements at a time
  const int32_t* rows;
  const void* bias;
  void* out;
  int64_t stride_out;
};

inline constexpr int kBoxRows = 64;                                // of W, in one copy
inline constexpr int kLoadBytes = 2 * kBoxRows * kBoxColumns * 2;  // of W, in one stage

// padded_rows: 8, 16, 32 or 64. tile_rows: 64 or 128. Fills in config's block and shared memory.
template <class T>
void launch_kernel(int padded_rows, int tile_rows, LaunchConfig config, const KernelArgs& args);

}  // namespace quire::cuda::gemm
