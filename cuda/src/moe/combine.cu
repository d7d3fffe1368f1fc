#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "quire/cuda/moe.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 128;

// Grid [tokens, parts of a row], block kThreads: each thread computes one vector of kSize elements.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) combine_kernel(MoeCombineParams p) {
  launch_dependents();
  wait_for_dependencies();
  const int d = (blockIdx.y * kThreads + threadIdx.x) * kSize;
  if (d >= p.hidden_size) return;
  const int64_t token = blockIdx.x, hidden_size = p.hidden_size;
  Vec<float, kSize> sum{};
  if (p.shared != nullptr) {
    sum = unpacked(load_vec<T, kSize>(static_cast<const T*>(p.shared) + token * hidden_size + d));
    if (p.shared_gate != nullptr) {
      const float gate = to_float(static_cast<const T*>(p.shared_gate)[token]);
      const float factor = 1.0f / (1.0f + expf(-gate));
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum[i] *= factor;
    }
  }
#pragma unroll 4
  for (int slot = 0; slot < p.top_k; ++slot) {
    const int64_t row = p.row_of_entry[token * p.top_k + slot];
    const float weight = p.weights[token * p.top_k + slot];
    const Vec<float, kSize> y =
        unpacked(load_vec<T, kSize>(static_cast<const T*>(p.x) + row * hidden_size + d));
#pragma unroll
    for (int i = 0; i < kSize; ++i) sum[i] = fmaf(weight, y[i], sum[i]);
  }
  store_vec(static_cast<T*>(p.out) + token * hidden_size + d, packed<T>(sum));
}

}  // namespace

void launch_moe_combine(const MoeCombineParams& p, cudaStream_t stream) {
  check_range("num_tokens", p.num_tokens, 0, INT32_MAX);
  check_range("top_k", p.top_k, 1, 1 << 16);
  check_range("hidden_size", p.hidden_size, 1, 1 << 20);
  if (p.hidden_size % 8 != 0 || !is_aligned(p.x, 16) || !is_aligned(p.out, 16) || !is_aligned(p.shared, 16)) {
    refuse("hidden_size, x, out, shared", std::to_string(p.hidden_size),
           "a multiple of 8, at multiples of 16 bytes");
  }
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    LaunchConfig config;
    config.grid = dim3(p.num_tokens, (p.hidden_size + kThreads * kSize - 1) / (kThreads * kSize));
    config.block = kThreads;
    config.overlaps = true;
    config.stream = stream;
    launch("moe_combine", combine_kernel<T, kSize>, config, p);
  });
}

}  // namespace quire::cuda
