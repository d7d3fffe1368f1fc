#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

// One of the two tensors.
struct Rows {
  const void* x;
  int64_t stride_x;
  int32_t width;
  void* out;
};
__host__ __device__ Rows first(const GatherRowsParams& p) { return {p.x, p.stride_x, p.width, p.out}; }
__host__ __device__ Rows second(const GatherRowsParams& p) { return {p.x2, p.stride_x2, p.width2, p.out2}; }

template <class T, int kSize>
__device__ void gather(const Rows& rows, int64_t row, int64_t index, bool is_valid, int d) {
  Vec<T, kSize> vec;
  if (is_valid) {
    vec = load_vec<T, kSize>(static_cast<const T*>(rows.x) + index * rows.stride_x + d);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) vec[i] = from_float<T>(__int_as_float(0x7fc00000));
  }
  store_vec(static_cast<T*>(rows.out) + row * rows.width + d, vec);
}

// Grid [rows, parts of both rows together], block kThreads: each thread copies one vector of kSize elements.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(GatherRowsParams p) {
  launch_dependents();
  wait_for_dependencies();
  const int d = (blockIdx.y * kThreads + threadIdx.x) * kSize;
  if (d >= p.width + p.width2) return;
  const int32_t index = p.indices[blockIdx.x];
  const bool is_valid = index >= 0 && index < p.num_x_rows;
  if (d < p.width) {
    gather<T, kSize>(first(p), blockIdx.x, index, is_valid, d);
  } else {
    gather<T, kSize>(second(p), blockIdx.x, index, is_valid, d - p.width);
  }
}

template <class T>
bool is_wide(const Rows& rows) {
  return rows.width % kVecSize<T> == 0 && rows.stride_x % kVecSize<T> == 0 && is_aligned(rows.x, 16) &&
         is_aligned(rows.out, 16);
}

}  // namespace

void launch_gather_rows(const GatherRowsParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, INT32_MAX);
  check_range("num_x_rows", p.num_x_rows, 0, INT32_MAX);
  check_range("width", p.width, 1, 1 << 20);
  check_range("width2", p.width2, 0, 1 << 20);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    const bool wide = is_wide<T>(first(p)) && (p.width2 == 0 || is_wide<T>(second(p)));
    const int width = p.width + p.width2;
    const int per_block = kThreads * (wide ? kSize : 1);
    LaunchConfig config;
    config.grid = dim3(p.num_rows, (width + per_block - 1) / per_block);
    config.block = kThreads;
    config.overlaps = true;
    config.stream = stream;
    launch("gather_rows", wide ? gather_rows_kernel<T, kSize> : gather_rows_kernel<T, 1>, config, p);
  });
}

}  // namespace quire::cuda
