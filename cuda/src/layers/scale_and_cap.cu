#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

// Grid [rows, parts of a row], block kThreads: each thread changes one vector of kSize elements.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) scale_and_cap_kernel(ScaleAndCapParams p) {
  launch_dependents();
  wait_for_dependencies();
  const int d = (blockIdx.y * kThreads + threadIdx.x) * kSize;
  if (d >= p.size) return;
  T* at = static_cast<T*>(p.x) + blockIdx.x * p.stride_x + d;
  Vec<float, kSize> x = unpacked(load_vec<T, kSize>(at));
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    x[i] *= p.scale;
    if (p.soft_cap > 0) x[i] = p.soft_cap * tanhf(x[i] / p.soft_cap);
  }
  store_vec(at, packed<T>(x));
}

}  // namespace

void launch_scale_and_cap(const ScaleAndCapParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, INT32_MAX);
  check_range("size", p.size, 1, 1 << 23);
  if (!(p.soft_cap >= 0)) refuse("soft_cap", std::to_string(p.soft_cap), "0 or more");
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    const bool wide = p.size % kSize == 0 && p.stride_x % kSize == 0 && is_aligned(p.x, 16);
    const int per_block = kThreads * (wide ? kSize : 1);
    LaunchConfig config;
    config.grid = dim3(p.num_rows, (p.size + per_block - 1) / per_block);
    config.block = kThreads;
    config.overlaps = true;
    config.stream = stream;
    launch("scale_and_cap", wide ? scale_and_cap_kernel<T, kSize> : scale_and_cap_kernel<T, 1>, config, p);
  });
}

}  // namespace quire::cuda
