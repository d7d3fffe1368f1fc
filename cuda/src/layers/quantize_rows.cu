#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "layers/quantized_row.cuh"
#include "layers/row_reduce.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

// Vectors that one thread holds at most.
constexpr int kMaxVecs = 8;

// Grid [rows]. One block holds one row in registers: one read, one write. Thread t holds the vectors t,
// t + blockDim.x, ..., kNumVecs of them at most.
template <class T, int kNumVecs>
__global__ void __launch_bounds__(kMaxRowThreads) quantize_rows_kernel(QuantizeRowsParams p) {
  __shared__ RowReduce reduce;
  launch_dependents();
  reduce.init();
  wait_for_dependencies();
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.stride_x;
  Vec<T, kQuantizedVec> values[kNumVecs] = {};
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    const int d = (v * blockDim.x + threadIdx.x) * kQuantizedVec;
    if (d < p.size) values[v] = load_vec<T, kQuantizedVec>(x + d);
  }
  store_quantized(values, p.size, reduce,
                  {static_cast<uint8_t*>(p.out) + row * p.size, p.scale + row, p.num_scales, p.num_rows});
}

template <class T>
void launch_type(const QuantizeRowsParams& p, const LaunchConfig& config, int num_vecs) {
  launch("quantize_rows",
         num_vecs <= kMaxRowThreads       ? quantize_rows_kernel<T, 1>
         : num_vecs <= 2 * kMaxRowThreads ? quantize_rows_kernel<T, 2>
         : num_vecs <= 4 * kMaxRowThreads ? quantize_rows_kernel<T, 4>
                                          : quantize_rows_kernel<T, kMaxVecs>,
         config, p);
}

}  // namespace

void launch_quantize_rows(const QuantizeRowsParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, INT32_MAX);
  check_range("size", p.size, 16, kMaxRowThreads * kMaxVecs * kQuantizedVec);
  check_quantizes("size", p.size, p.dtype, p.num_scales);
  if (p.stride_x % kQuantizedVec != 0) refuse("stride_x", std::to_string(p.stride_x), "multiples of 8");
  if (!is_aligned(p.x, 16)) throw std::invalid_argument("x: must be 16-byte aligned");
  if (!is_aligned(p.out, 16)) throw std::invalid_argument("out: must be 16-byte aligned");
  const int num_vecs = p.size / kQuantizedVec;
  LaunchConfig config;
  config.grid = p.num_rows;
  config.block = num_row_threads(num_vecs);
  config.overlaps = true;
  config.stream = stream;
  p.dtype == DType::kBFloat16 ? launch_type<__nv_bfloat16>(p, config, num_vecs)
                              : launch_type<__half>(p, config, num_vecs);
}

}  // namespace quire::cuda
