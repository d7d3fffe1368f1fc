// Sums and maxima over a warp and over a block. Every thread takes part and gets the result; the order of the
// additions depends on the block's size alone, so results repeat bitwise.
#pragma once

#include <cuda_runtime.h>

namespace quire::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

template <class T, class Op>
__device__ inline T warp_reduce(T value, Op op) {
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    value = op(value, __shfl_xor_sync(kAllLanes, value, lanes));
  }
  return value;
}

// scratch: one T per warp in shared memory. The block's size is a multiple of 32. May be called again with
// the same scratch at once.
template <class T, class Op>
__device__ inline T block_reduce(T value, Op op, T* scratch) {
  const int warp = threadIdx.x / kWarpSize, num_warps = blockDim.x / kWarpSize;
  value = warp_reduce(value, op);
  __syncthreads();  // the scratch of a call before this one has been read
  if (threadIdx.x % kWarpSize == 0) scratch[warp] = value;
  __syncthreads();
  value = scratch[0];
  for (int i = 1; i < num_warps; ++i) value = op(value, scratch[i]);
  return value;
}

}  // namespace quire::cuda
