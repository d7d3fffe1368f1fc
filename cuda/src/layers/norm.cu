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
template <int kSize>
constexpr int kMaxVecs = kSize == 1 ? 8 : 4;

enum class Form { kRms, kRmsRoundsOnce, kLayer };

// Grid [rows, groups]. One block normalises one row, or one group of it, which it holds in registers: one
// read, one write. Thread t holds the vectors t, t + blockDim.x, ... of kSize elements, kNumVecs of them at
// most. kQuantizes: out is e4m3 with the row's scale.
template <class T, int kSize, int kNumVecs, bool kHasResidual, Form kForm, bool kQuantizes>
__global__ void __launch_bounds__(kMaxRowThreads) norm_kernel(NormParams p, float one_over_size) {
  __shared__ RowReduce reduce, reduce_again;
  const int64_t row = blockIdx.x, in_row = static_cast<int64_t>(blockIdx.y) * p.hidden_size;
  const int64_t contiguous = row * p.num_groups * p.hidden_size + in_row;
  const T* x = static_cast<const T*>(p.x) + row * p.stride_x + in_row;
  T* residual = static_cast<T*>(p.residual) + (kHasResidual ? contiguous : 0);
  const T* weight = static_cast<const T*>(p.weight) + in_row;
  const auto element = [](int v) { return static_cast<int>(v * blockDim.x + threadIdx.x) * kSize; };
  const auto is_mine = [&](int v) { return element(v) < p.hidden_size; };
  // Threads past the row's end load its last vector: loads without a condition are issued all at once.
  const auto loaded_element = [&](int v) { return min(element(v), p.hidden_size - kSize); };

  Vec<T, kSize> values[kNumVecs], before[kNumVecs], weights[kNumVecs];
  launch_dependents();
  if (kNumVecs <= 2) {  // more are too many to hold all along
#pragma unroll
    for (int v = 0; v < kNumVecs; ++v) weights[v] = load_vec<T, kSize>(weight + loaded_element(v));
  }
  reduce.init();
  if (kForm == Form::kLayer) reduce_again.init();
  wait_for_dependencies();

  // All loads are issued before the first store, which the compiler must assume to overlap them.
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    values[v] = load_vec<T, kSize>(x + loaded_element(v));
    if (kHasResidual) before[v] = load_vec<T, kSize>(residual + loaded_element(v));
  }
  float total = 0;  // of the elements, or of their squares
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    Vec<float, kSize> sum = unpacked(values[v]);
    if (kHasResidual) {
      if (p.residual_scale != 1) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) sum[i] *= p.residual_scale;
        sum = rounded<T>(sum);
      }
      const Vec<float, kSize> added = unpacked(before[v]);
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum[i] += added[i];
      values[v] = packed<T>(sum);
      sum = unpacked(values[v]);
    }
    if (!is_mine(v)) continue;
    if (kHasResidual) store_vec(residual + element(v), values[v]);
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      total = kForm == Form::kLayer ? total + sum[i] : fmaf(sum[i], sum[i], total);
  }
  float mean = 0;
  if (kForm == Form::kLayer) {
    mean = reduce_again.sum(total) * one_over_size;
    total = 0;
#pragma unroll
    for (int v = 0; v < kNumVecs; ++v) {
      if (!is_mine(v)) continue;
      const Vec<float, kSize> one = unpacked(values[v]);
#pragma unroll
      for (int i = 0; i < kSize; ++i) total = fmaf(one[i] - mean, one[i] - mean, total);
    }
  }
  const float scale = rsqrtf(fmaf(reduce.sum(total), one_over_size, p.eps));

  T* out = static_cast<T*>(p.out) + row * p.stride_out + in_row;
#pragma unroll
  for (int v = 0; v < kNumVecs; ++v) {
    if (kNumVecs > 2) weights[v] = load_vec<T, kSize>(weight + loaded_element(v));
    const Vec<float, kSize> factors = unpacked(weights[v]);
    Vec<float, kSize> normed = unpacked(values[v]);
    if (kForm == Form::kLayer) {
      Vec<float, kSize> shift{};
      if (p.bias != nullptr) {
        shift = unpacked(load_vec<T, kSize>(static_cast<const T*>(p.bias) + in_row + loaded_element(v)));
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) normed[i] = fmaf((normed[i] - mean) * scale, factors[i], shift[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) normed[i] *= scale;
      if (kForm != Form::kRmsRoundsOnce) normed = rounded<T>(normed);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        normed[i] *= kForm == Form::kRmsRoundsOnce ? factors[i] + p.weight_offset : factors[i];
      }
    }
    values[v] = packed<T>(normed);
    if (!kQuantizes && is_mine(v)) store_vec(out + element(v), values[v]);
  }
  if constexpr (kQuantizes) {
    store_quantized(
        values, p.hidden_size, reduce,
        {static_cast<uint8_t*>(p.out) + row * p.stride_out, p.out_scale + row, p.num_scales, p.num_rows});
  }
}

template <class T, int kSize, int kNumVecs, bool kHasResidual, Form kForm>
auto with_quantization(const NormParams& p) {
  if constexpr (sizeof(T) == 2 && kSize == kQuantizedVec) {
    if (p.out_scale != nullptr) return norm_kernel<T, kSize, kNumVecs, kHasResidual, kForm, true>;
  }
  return norm_kernel<T, kSize, kNumVecs, kHasResidual, kForm, false>;
}

template <class T, int kSize, int kNumVecs, Form kForm>
auto with_residual(const NormParams& p) {
  return p.residual != nullptr ? with_quantization<T, kSize, kNumVecs, true, kForm>(p)
                               : with_quantization<T, kSize, kNumVecs, false, kForm>(p);
}

template <class T, int kSize, int kNumVecs>
auto kernel_for(const NormParams& p) {
  if (p.is_centered) return with_residual<T, kSize, kNumVecs, Form::kLayer>(p);
  if (p.rounds_once) return with_residual<T, kSize, kNumVecs, Form::kRmsRoundsOnce>(p);
  return with_residual<T, kSize, kNumVecs, Form::kRms>(p);
}

template <class T, int kSize>
void launch_rows(const NormParams& p, cudaStream_t stream) {
  check_range("hidden_size", p.hidden_size, 1, kMaxRowThreads * kMaxVecs<kSize> * kSize);
  const int num_vecs = (p.hidden_size + kSize - 1) / kSize;
  LaunchConfig config;
  config.grid = dim3(p.num_rows, p.num_groups);
  config.block = num_row_threads(num_vecs);
  config.overlaps = true;
  config.stream = stream;
  launch("norm",
         num_vecs <= kMaxRowThreads       ? kernel_for<T, kSize, 1>(p)
         : num_vecs <= 2 * kMaxRowThreads ? kernel_for<T, kSize, 2>(p)
                                          : kernel_for<T, kSize, kMaxVecs<kSize>>(p),
         config, p, 1.0f / static_cast<float>(p.hidden_size));
}

}  // namespace

void launch_norm(const NormParams& p, cudaStream_t stream) {
  check_range("num_groups", p.num_groups, 1, (1 << 16) - 1);
  check_range("num_rows", p.num_rows, 0, INT32_MAX);
  if (p.out_scale != nullptr) {
    if (p.num_groups != 1) refuse("out_scale", "a scale per row", "none, with groups");
    check_quantizes("hidden_size", p.hidden_size, p.dtype, p.num_scales);
  }
  if (p.weight_offset != 0 && !p.rounds_once) refuse("rounds_once", "false", "true, with weight_offset");
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    const bool wide = p.hidden_size % kSize == 0 && p.stride_x % kSize == 0 && p.stride_out % kSize == 0 &&
                      is_aligned(p.x, 16) && is_aligned(p.residual, 16) && is_aligned(p.weight, 16) &&
                      is_aligned(p.bias, 16) && is_aligned(p.out, 16);
    if (p.out_scale != nullptr && !wide) refuse("out_scale", "unaligned rows", "16-byte aligned rows");
    wide ? launch_rows<T, kSize>(p, stream) : launch_rows<T, 1>(p, stream);
  });
}

}  // namespace quire::cuda
