#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "layers/activation.cuh"
#include "layers/quantized_row.cuh"
#include "layers/row_reduce.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

// Grid [rows, parts of a row], block kThreads: each thread computes one vector of kSize elements.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) activate_kernel(ActivateParams p) {
  launch_dependents();
  wait_for_dependencies();
  const int d = (blockIdx.y * kThreads + threadIdx.x) * kSize;
  if (d >= p.size) return;
  const T* row = static_cast<const T*>(p.x) + blockIdx.x * p.stride_x;
  T* to = static_cast<T*>(p.out) + static_cast<int64_t>(blockIdx.x) * p.size + d;
  const Vec<T, kSize> x = load_vec<T, kSize>(row + d);
  if (p.is_gated) {
    store_vec(to, gated(p.activation, x, load_vec<T, kSize>(row + p.size + d)));
  } else {
    store_vec(to, packed<T>(activated(p.activation, x)));
  }
}

// Vectors that one thread holds at most when a block holds the row.
constexpr int kMaxVecs = 8;

// Grid [rows]. One block computes one row, holds it in registers and stores it as e4m3 with the row's scale.
// Thread t holds the vectors t, t + blockDim.x, ..., kNumVecs of them at most.
template <class T, int kNumVecs>
__global__ void __launch_bounds__(kMaxRowThreads) activate_float8_kernel(ActivateParams p) {
  __shared__ RowReduce reduce;
  launch_dependents();
  reduce.init();
  wait_for_dependencies();
  const int64_t row = blockIdx.x;
  const T* gate = static_cast<const T*>(p.x) + row * p.stride_x;
  const T* up = gate + p.size;
  Vec<T, kQuantizedVec> values[kNumVecs] = {};
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kQuantizedVec;
    if (d >= p.size) continue;
    values[v] = gated(p.activation, load_vec<T, kQuantizedVec>(gate + d), load_vec<T, kQuantizedVec>(up + d));
  }
  store_quantized(values, p.size, reduce,
                  {static_cast<uint8_t*>(p.out) + row * p.size, p.out_scale + row, 1, p.num_rows});
}

template <class T>
void launch_float8(const ActivateParams& p, LaunchConfig config) {
  check_range("size", p.size, 1, kMaxRowThreads * kMaxVecs * kQuantizedVec);
  const int num_vecs = p.size / kQuantizedVec;
  config.grid = p.num_rows;
  config.block = num_row_threads(num_vecs);
  launch("activate",
         num_vecs <= 2 * kMaxRowThreads ? activate_float8_kernel<T, 2> : activate_float8_kernel<T, kMaxVecs>,
         config, p);
}

}  // namespace

void launch_activate(const ActivateParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, INT32_MAX);
  check_range("size", p.size, 1, 1 << 20);
  check_range("activation", static_cast<int>(p.activation), 0, static_cast<int>(Activation::kSwigluOai));
  LaunchConfig config;
  config.overlaps = true;
  config.stream = stream;
  if (p.out_scale != nullptr) {
    if (!p.is_gated) refuse("out_scale", "a scale per row", "none, without a gate");
    check_quantizes("size", p.size, p.dtype, 1);
    if (p.stride_x % kQuantizedVec != 0) refuse("stride_x", std::to_string(p.stride_x), "multiples of 8");
    if (!is_aligned(p.x, 16)) throw std::invalid_argument("x: must be 16-byte aligned");
    if (!is_aligned(p.out, 16)) throw std::invalid_argument("out: must be 16-byte aligned");
    return p.dtype == DType::kBFloat16 ? launch_float8<__nv_bfloat16>(p, config)
                                       : launch_float8<__half>(p, config);
  }
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    const bool wide =
        p.size % kSize == 0 && p.stride_x % kSize == 0 && is_aligned(p.x, 16) && is_aligned(p.out, 16);
    const int per_block = kThreads * (wide ? kSize : 1);
    config.grid = dim3(p.num_rows, (p.size + per_block - 1) / per_block);
    config.block = kThreads;
    launch("activate", wide ? activate_kernel<T, kSize> : activate_kernel<T, 1>, config, p);
  });
}

}  // namespace quire::cuda
