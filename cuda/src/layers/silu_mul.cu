#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

// Grid [rows, parts of a row], block kThreads: each thread computes one vector of kSize elements.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) silu_mul_kernel(SiluMulParams p) {
  launch_dependents();
  wait_for_dependencies();
  const int d = (blockIdx.y * kThreads + threadIdx.x) * kSize;
  if (d >= p.intermediate_size) return;
  const T* row = static_cast<const T*>(p.gate_up) + blockIdx.x * p.stride_gate_up;
  const Vec<T, kSize> gate = load_vec<T, kSize>(row + d);
  const Vec<T, kSize> up = load_vec<T, kSize>(row + p.intermediate_size + d);
  Vec<T, kSize> out;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const float g = to_float(gate[i]);
    out[i] = from_float<T>(rounded<T>(g / (1.0f + expf(-g))) * to_float(up[i]));
  }
  store_vec(static_cast<T*>(p.out) + static_cast<int64_t>(blockIdx.x) * p.intermediate_size + d, out);
}

}  // namespace

void launch_silu_mul(const SiluMulParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, INT32_MAX);
  check_range("intermediate_size", p.intermediate_size, 1, 1 << 20);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    const bool wide = p.intermediate_size % kSize == 0 && p.stride_gate_up % kSize == 0 &&
                      is_aligned(p.gate_up, 16) && is_aligned(p.out, 16);
    const int per_block = kThreads * (wide ? kSize : 1);
    LaunchConfig config;
    config.grid = dim3(p.num_rows, (p.intermediate_size + per_block - 1) / per_block);
    config.block = kThreads;
    config.overlaps = true;
    config.stream = stream;
    launch("silu_mul", wide ? silu_mul_kernel<T, kSize> : silu_mul_kernel<T, 1>, config, p);
  });
}

}  // namespace quire::cuda
