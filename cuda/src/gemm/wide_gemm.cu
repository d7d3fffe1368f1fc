#include <algorithm>
#include <array>

#include "common/dispatch.h"
#include "common/launch.h"
#include "quire/cuda/wide_gemm.h"
#include "tensor_map.h"
#include "wide_kernel.h"

namespace quire::cuda {
namespace {

using gemm::make_tensor_map;
using gemm::wide::Choice;
using gemm::wide::KernelArgs;
using gemm::wide::kSmallWeightBox;
using gemm::wide::kWeightBox;

int num_clusters() {
  static const int count = [] {
    int device = 0, sms = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return std::max(1, sms / 2);
  }();
  return count;
}

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

// Calls come layer after layer with the same sizes.
Choice remembered_schedule(int32_t num_rows, int32_t num_columns, const int32_t (&tile_columns)[2],
                           const WideGemmTuning& t) {
  using Key = std::array<int32_t, 7>;
  thread_local Key last_key;
  thread_local Choice last = {{}, 0};
  const Key key = {num_rows, num_columns, tile_columns[0], tile_columns[1], t.pair, t.group, t.halves};
  if (last.tile_columns == 0 || key != last_key) {
    last = gemm::wide::choose_schedule(num_rows, num_columns, tile_columns, num_clusters(), t.pair, t.group,
                                       t.halves);
    last_key = key;
  }
  return last;
}

}  // namespace

WideGemmWeight make_wide_gemm_weight(const void* data, int64_t n, int64_t k, DType dtype, bool silu_mul) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    refuse("dtype", std::to_string(static_cast<int>(dtype)), "1 (bfloat16), 2 (float16)");
  }
  check_range("n", n, 8, 1 << 28);
  check_range("k", k, gemm::kBoxColumns, 1 << 24);
  if (k % 8 != 0) refuse("k", std::to_string(k), "multiples of 8");
  if (silu_mul && n % 16 != 0) refuse("n with silu_mul", std::to_string(n), "multiples of 16");
  if (n % 8 != 0) refuse("n", std::to_string(n), "multiples of 8");
  if (!is_aligned(data, 16)) throw std::invalid_argument("w: must be 16-byte aligned");
  WideGemmWeight weight;
  weight.data = data;
  weight.n = n;
  weight.k = k;
  weight.dtype = dtype;
  weight.silu_mul = silu_mul;
  return weight;
}

void launch_wide_gemm(const WideGemmWeight& w, const WideGemmParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, 1 << 24);
  if (p.num_rows == 0) return;
  const int64_t n_out = w.silu_mul ? w.n / 2 : w.n;
  if (!is_aligned(p.x, 16)) throw std::invalid_argument("x: must be 16-byte aligned");
  if (!is_aligned(p.out, 16)) throw std::invalid_argument("out: must be 16-byte aligned");
  if (!is_aligned(p.bias, 4)) throw std::invalid_argument("bias: must be 4-byte aligned");
  if (p.stride_x % 8 != 0) refuse("stride_x", std::to_string(p.stride_x), "multiples of 8");
  if (p.stride_out % 8 != 0) refuse("stride_out", std::to_string(p.stride_out), "multiples of 8");
  check_range("stride_x", p.stride_x, p.num_rows == 1 ? 0 : w.k, INT32_MAX);
  check_range("stride_out", p.stride_out, p.num_rows == 1 ? 0 : n_out, INT32_MAX);

  const int32_t columns = p.tuning.columns;
  const int32_t tile_columns[2] = {!w.silu_mul   ? 2 * kWeightBox
                                   : columns > 0 ? columns
                                                 : kWeightBox,
                                   w.silu_mul && columns == 0 ? kSmallWeightBox : 0};
  const Choice choice = remembered_schedule(p.num_rows, static_cast<int32_t>(n_out), tile_columns, p.tuning);
  const int32_t box = w.silu_mul ? choice.tile_columns : kWeightBox;
  if (box != kWeightBox && box != kSmallWeightBox) {
    refuse("tuning.columns", std::to_string(columns), "128, 112");
  }

  KernelArgs args;
  args.weight = make_tensor_map(w.dtype, w.data, w.n, w.k, w.k, box);
  args.x = make_tensor_map(w.dtype, p.x, p.num_rows, w.k, std::max(p.stride_x, w.k), gemm::wide::kRowBox);
  args.out =
      make_tensor_map(w.dtype, p.out, p.num_rows, n_out, std::max(p.stride_out, n_out), gemm::wide::kRowBox);
  args.schedule = choice.schedule;
  args.num_rows = p.num_rows;
  args.n_out = static_cast<int32_t>(n_out);
  args.num_steps = ceil_div(w.k, gemm::kBoxColumns);
  args.second_box = w.silu_mul ? args.n_out : box;
  args.bias = p.bias;

  LaunchConfig config;
  config.grid = 2 * std::min(num_clusters(), args.schedule.num_items);
  config.overlaps = p.overlaps;
  config.stream = stream;
  const auto launch_type = [&](auto type) {
    using T = typename decltype(type)::type;
    const auto launch_kernel = !w.silu_mul         ? gemm::wide::launch_kernel<T, false, kWeightBox>
                               : box == kWeightBox ? gemm::wide::launch_kernel<T, true, kWeightBox>
                                                   : gemm::wide::launch_kernel<T, true, kSmallWeightBox>;
    launch_kernel(config, args);
  };
  if (w.dtype == DType::kBFloat16) {
    launch_type(Type<__nv_bfloat16>{});
  } else {
    launch_type(Type<__half>{});
  }
}

}  // namespace quire::cuda
