#include <algorithm>

#include "common/dispatch.h"
#include "common/launch.h"
#include "quire/cuda/wide_gemm.h"
#include "tensor_map.h"
#include "wide_kernel.h"

namespace quire::cuda {
namespace {

using gemm::make_tensor_map;
using gemm::wide::KernelArgs;
using gemm::wide::kSmallWeightBox;
using gemm::wide::kTileRows;
using gemm::wide::kWeightBox;
using gemm::wide::Schedule;

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

Schedule make_schedule(int32_t row_tiles, int32_t column_tiles, const WideGemmTuning& tuning) {
  Schedule s;
  // A pair along the rows of x shares the larger tile, so it is right unless it makes a tile for nothing.
  s.shares_x = tuning.pair >= 0 ? tuning.pair == 1 : row_tiles % 2 == 1 && column_tiles % 2 == 0;
  s.row_units = s.shares_x ? row_tiles : ceil_div(row_tiles, 2);
  s.column_units = s.shares_x ? ceil_div(column_tiles, 2) : column_tiles;
  // Rows that stay in L2 while W passes by once.
  constexpr int32_t kGroupTiles = 16;
  s.group = tuning.group > 0 ? tuning.group : s.shares_x ? kGroupTiles : kGroupTiles / 2;
  const int32_t units = s.row_units * s.column_units, clusters = num_clusters();
  // The units that do not give every cluster one more: in halves when these do not either.
  int32_t rest = units % clusters;
  if (tuning.halves == 0 || 2 * rest > clusters) rest = 0;
  s.num_whole = units - rest;
  s.num_items = s.num_whole + 2 * rest;
  return s;
}

// The time of the slowest cluster, in half units.
int32_t num_rounds(const Schedule& s) {
  const int32_t clusters = num_clusters();
  return 2 * ceil_div(s.num_whole, clusters) + ceil_div(s.num_items - s.num_whole, clusters);
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

  // Of tiles: columns of out with silu_mul, otherwise half as many.
  const int32_t row_tiles = ceil_div(p.num_rows, kTileRows);
  int box = kWeightBox;
  Schedule schedule = make_schedule(row_tiles, ceil_div(n_out, w.silu_mul ? box : 2 * box), p.tuning);
  if (w.silu_mul) {
    const Schedule small = make_schedule(row_tiles, ceil_div(n_out, kSmallWeightBox), p.tuning);
    const bool is_faster = num_rounds(small) * kSmallWeightBox < num_rounds(schedule) * kWeightBox;
    if (p.tuning.columns > 0 ? p.tuning.columns == kSmallWeightBox : is_faster) {
      box = kSmallWeightBox;
      schedule = small;
    }
  }

  KernelArgs args;
  args.weight = make_tensor_map(w.dtype, w.data, w.n, w.k, w.k, box);
  args.x = make_tensor_map(w.dtype, p.x, p.num_rows, w.k, std::max(p.stride_x, w.k), gemm::wide::kRowBox);
  args.out =
      make_tensor_map(w.dtype, p.out, p.num_rows, n_out, std::max(p.stride_out, n_out), gemm::wide::kRowBox);
  args.schedule = schedule;
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
