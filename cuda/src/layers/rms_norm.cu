#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/fp8.cuh"
#include "common/launch.h"
#include "common/vec.cuh"
#include "layers/row_reduce.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

// Vectors that one thread holds at most.
template <int kSize>
constexpr int kMaxVecs = kSize == 1 ? 8 : 4;

// Grid [rows]. One block normalises one row, which it holds in registers: one read, one write. Thread t holds
// the vectors t, t + blockDim.x, ... of kSize elements, kNumVecs of them at most. kIsFloat8: out is e4m3 with
// the row's scale.
template <class T, int kSize, int kNumVecs, bool kIsFloat8>
__global__ void __launch_bounds__(kMaxRowThreads) rms_norm_kernel(RmsNormParams p) {
  __shared__ RowReduce reduce;
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.stride_x;
  T* residual = p.residual == nullptr ? nullptr : static_cast<T*>(p.residual) + row * p.hidden_size;
  const T* weight = static_cast<const T*>(p.weight);

  Vec<T, kSize> values[kNumVecs], before[kNumVecs], weights[kNumVecs];
  launch_dependents();
  if (kNumVecs <= 2) {  // more are too many to hold all along
#pragma unroll
    for (int v = 0; v < kNumVecs; ++v) {
      const int d = (v * blockDim.x + threadIdx.x) * kSize;
      if (d < p.hidden_size) weights[v] = load_vec<T, kSize>(weight + d);
    }
  }
  const float one_over_size = 1.0f / static_cast<float>(p.hidden_size);
  reduce.init();
  wait_for_dependencies();

  // All loads are issued before the first store, which the compiler must assume to overlap them.
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kSize;
    if (d >= p.hidden_size) continue;
    values[v] = load_vec<T, kSize>(x + d);
    if (residual != nullptr) before[v] = load_vec<T, kSize>(residual + d);
  }
  float squares = 0;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kSize;
    if (d >= p.hidden_size) continue;
    if (residual != nullptr) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        values[v][i] = from_float<T>(to_float(before[v][i]) + to_float(values[v][i]));
      }
      store_vec(residual + d, values[v]);
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float value = to_float(values[v][i]);
      squares = fmaf(value, value, squares);
    }
  }
  const float scale = rsqrtf(fmaf(reduce.sum(squares), one_over_size, p.eps));

  T* out = static_cast<T*>(p.out) + row * p.hidden_size;
  float largest = 0;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kSize;
    if (d >= p.hidden_size) continue;
    if (kNumVecs > 2) weights[v] = load_vec<T, kSize>(weight + d);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float normed = rounded<T>(to_float(values[v][i]) * scale);
      values[v][i] = from_float<T>(normed * to_float(weights[v][i]));
    }
    if (kIsFloat8) {
      largest = fmaxf(largest, largest_magnitude(values[v]));
    } else {
      store_vec(out + d, values[v]);
    }
  }
  if (!kIsFloat8) return;

  const Float8Scale out_scale(reduce.max(largest));
  if (threadIdx.x == 0) p.out_scale[row] = out_scale.scale;
  uint8_t* quantized = static_cast<uint8_t*>(p.out) + row * p.hidden_size;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kSize;
    if (d < p.hidden_size) store_vec(quantized + d, out_scale.quantized(values[v]));
  }
}

template <class T, int kSize, bool kIsFloat8>
void launch_rows(const RmsNormParams& p, cudaStream_t stream) {
  check_range("hidden_size", p.hidden_size, 1, kMaxRowThreads * kMaxVecs<kSize> * kSize);
  const int num_vecs = (p.hidden_size + kSize - 1) / kSize;
  const int threads = num_row_threads(num_vecs);
  const int per_thread = (num_vecs + threads - 1) / threads;
  LaunchConfig config;
  config.grid = p.num_rows;
  config.block = threads;
  config.overlaps = true;
  config.stream = stream;
  launch("rms_norm",
         per_thread <= 2 ? rms_norm_kernel<T, kSize, 2, kIsFloat8>
                         : rms_norm_kernel<T, kSize, kMaxVecs<kSize>, kIsFloat8>,
         config, p);
}

}  // namespace

void launch_rms_norm(const RmsNormParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, INT32_MAX);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    const bool wide = p.hidden_size % kSize == 0 && p.stride_x % kSize == 0 && is_aligned(p.x, 16) &&
                      is_aligned(p.residual, 16) && is_aligned(p.weight, 16) && is_aligned(p.out, 16);
    if (p.out_scale != nullptr) {
      wide ? launch_rows<T, kSize, true>(p, stream) : launch_rows<T, 1, true>(p, stream);
    } else {
      wide ? launch_rows<T, kSize, false>(p, stream) : launch_rows<T, 1, false>(p, stream);
    }
  });
}

}  // namespace quire::cuda
