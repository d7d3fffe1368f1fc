// Rows that one block holds: how many threads, and sums and maxima with a single barrier each.
#pragma once

#include "common/reduce.cuh"

namespace quire::cuda {

inline constexpr int kMaxRowThreads = 1024;

// A thread per vector, as far as a block goes. From the row's size alone, so that a row's result never
// depends on the batch.
inline int num_row_threads(int num_vecs) {
  return num_vecs >= kMaxRowThreads ? kMaxRowThreads : (num_vecs + kWarpSize - 1) / kWarpSize * kWarpSize;
}

// In shared memory. Every thread of the block calls init() once, and then sum() and max() once at most. The
// order of the additions depends on the block's size alone, so results repeat bitwise.
class RowReduce {
 public:
  // The partial results of warps that the block does not have stay 0.
  __device__ void init() {
    if (threadIdx.x < kMaxWarps) sums_[threadIdx.x] = maxima_[threadIdx.x] = 0.0f;
    __syncthreads();
  }

  __device__ float sum(float value) { return reduce(value, Sum(), sums_); }

  // The values are at least 0.
  __device__ float max(float value) { return reduce(value, Max(), maxima_); }

 private:
  static constexpr int kMaxWarps = kMaxRowThreads / kWarpSize;

  template <class Op>
  __device__ static float reduce(float value, Op op, float* partial) {
    value = warp_reduce(value, op);
    if (threadIdx.x % kWarpSize == 0) partial[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    value = 0.0f;
    for (int warp = 0; warp * kWarpSize < blockDim.x; warp += 4) {
      const float4 four = *reinterpret_cast<const float4*>(partial + warp);
      value = op(value, op(op(four.x, four.y), op(four.z, four.w)));
    }
    return value;
  }

  alignas(16) float sums_[kMaxWarps];
  alignas(16) float maxima_[kMaxWarps];
};

}  // namespace quire::cuda
