// The sum or maximum of a row that one block holds, with a single barrier per reduction.
#pragma once

#include "common/reduce.cuh"

namespace quire::cuda {

// In shared memory. Every thread of the block calls init() once, and then the reductions. The order of the
// additions depends on the block's size alone, so results repeat bitwise.
class RowReduce {
 public:
  // The partial results of warps that the block does not have stay 0.
  __device__ void init() {
    if (threadIdx.x < kMaxWarps) partial_[0][threadIdx.x] = partial_[1][threadIdx.x] = 0.0f;
    __syncthreads();
  }

  // Of every thread's value; 0 or more for a maximum. Calls take turns with two buffers, since a thread may
  // still read those of the call before: at most two calls.
  template <class Op>
  __device__ float operator()(float value, Op op, int call = 0) {
    value = warp_reduce(value, op);
    float* partial = partial_[call];
    if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    value = 0.0f;
    for (int warp = 0; warp * kWarpSize < blockDim.x; warp += 4) {
      const float4 four = *reinterpret_cast<const float4*>(partial + warp);
      value = op(value, op(op(four.x, four.y), op(four.z, four.w)));
    }
    return value;
  }

 private:
  static constexpr int kMaxWarps = 32;

  alignas(16) float partial_[2][kMaxWarps];
};

}  // namespace quire::cuda
