#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/fp8.cuh"
#include "common/launch.h"
#include "common/vec.cuh"
#include "layers/row_reduce.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

// The quick exponential and division are good to 1e-5, far below the rounding of a 16-bit type.
template <class T>
__device__ float silu(float x) {
  if constexpr (std::is_same_v<T, float>) return x / (1.0f + expf(-x));
  return __fdividef(x, 1.0f + __expf(-x));
}

template <class T, int kSize>
__device__ Vec<T, kSize> silu_mul(const Vec<T, kSize>& gate, const Vec<T, kSize>& up) {
  Vec<float, kSize> out = unpacked(gate);
#pragma unroll
  for (int i = 0; i < kSize; ++i) out[i] = silu<T>(out[i]);
  out = rounded<T>(out);
  const Vec<float, kSize> factors = unpacked(up);
#pragma unroll
  for (int i = 0; i < kSize; ++i) out[i] *= factors[i];
  return packed<T>(out);
}

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
  store_vec(static_cast<T*>(p.out) + static_cast<int64_t>(blockIdx.x) * p.intermediate_size + d,
            silu_mul(gate, up));
}

// Vectors that one thread holds at most when a block holds the row.
constexpr int kMaxVecs = 8;

// Grid [rows]. One block computes one row, holds it in registers and stores it as e4m3 with the row's scale.
// Thread t holds the vectors t, t + blockDim.x, ... of kSize elements, kNumVecs of them at most.
template <class T, int kSize, int kNumVecs>
__global__ void __launch_bounds__(kMaxRowThreads) silu_mul_float8_kernel(SiluMulParams p) {
  __shared__ RowReduce reduce;
  launch_dependents();
  reduce.init();
  wait_for_dependencies();
  const int64_t row = blockIdx.x;
  const T* gate = static_cast<const T*>(p.gate_up) + row * p.stride_gate_up;
  const T* up = gate + p.intermediate_size;
  Vec<T, kSize> values[kNumVecs];
  float largest = 0;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kSize;
    if (d >= p.intermediate_size) continue;
    values[v] = silu_mul(load_vec<T, kSize>(gate + d), load_vec<T, kSize>(up + d));
    largest = fmaxf(largest, largest_magnitude(unpacked(values[v])));
  }
  const Float8Scale scale(reduce.max(largest));
  if (threadIdx.x == 0) p.out_scale[row] = scale.scale;
  uint8_t* out = static_cast<uint8_t*>(p.out) + row * p.intermediate_size;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kSize;
    if (d < p.intermediate_size) store_vec(out + d, scale.quantized(values[v]));
  }
}

template <class T, int kSize>
void launch_float8(const SiluMulParams& p, cudaStream_t stream) {
  check_range("intermediate_size", p.intermediate_size, 1, kMaxRowThreads * kMaxVecs * kSize);
  const int num_vecs = (p.intermediate_size + kSize - 1) / kSize;
  LaunchConfig config;
  config.grid = p.num_rows;
  config.block = num_row_threads(num_vecs);
  config.overlaps = true;
  config.stream = stream;
  launch("silu_mul",
         num_vecs <= 2 * kMaxRowThreads ? silu_mul_float8_kernel<T, kSize, 2>
                                        : silu_mul_float8_kernel<T, kSize, kMaxVecs>,
         config, p);
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
    if (p.out_scale != nullptr)
      return wide ? launch_float8<T, kSize>(p, stream) : launch_float8<T, 1>(p, stream);
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
