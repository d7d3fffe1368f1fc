#include <cuda_fp8.h>

#include <algorithm>

#include "common/dispatch.h"
#include "common/launch.h"
#include "gemm/device.h"
#include "operands.h"
#include "quire/cuda/gemm.h"
#include "wide_kernel.h"

namespace quire::cuda {
namespace {

using gemm::ceil_div;
using gemm::make_tensor_map;
using gemm::wide::KernelArgs;
using gemm::wide::kSmallWeightBox;
using gemm::wide::kTileRows;
using gemm::wide::kWeightBox;
using gemm::wide::Schedule;

int num_clusters() { return std::max(1, gemm::num_sms() / 2); }

Schedule make_schedule(int32_t num_rows, int32_t column_tiles, bool shares_x, bool cuts_last, int32_t group) {
  const int32_t row_tiles = ceil_div(num_rows, kTileRows);
  Schedule s;
  s.num_rows = num_rows;
  s.shares_x = shares_x;
  s.row_units = shares_x ? row_tiles : ceil_div(row_tiles, 2);
  s.column_units = shares_x ? ceil_div(column_tiles, 2) : column_tiles;
  constexpr int32_t kGroupTiles = 16;  // rows of x that stay in L2 while W passes by once
  s.group = group > 0 ? group : shares_x ? kGroupTiles : kGroupTiles / 2;
  const int32_t units = s.row_units * s.column_units;
  // The units that do not give every cluster one more.
  const int32_t rest = cuts_last ? units % num_clusters() : 0;
  s.num_whole = units - rest;
  s.num_items = s.num_whole + 2 * rest;
  return s;
}

struct Choice {
  Schedule schedule;
  int32_t tile_columns;  // of out
};

// The schedule that is done first. tile_columns: of the tiles that compete; 0: none.
Choice choose_schedule(int32_t num_rows, int64_t num_columns, const int32_t (&tile_columns)[2],
                       const WideGemmTuning& tuning) {
  Choice best = {};
  int64_t best_time = INT64_MAX;
  for (const int32_t columns : tile_columns) {
    if (columns == 0) continue;
    for (const bool shares_x : {false, true}) {
      if (tuning.pair >= 0 && shares_x != (tuning.pair == 1)) continue;
      for (const bool cuts_last : {false, true}) {
        if (tuning.halves >= 0 && cuts_last != (tuning.halves == 1)) continue;
        const Schedule s =
            make_schedule(num_rows, ceil_div(num_columns, columns), shares_x, cuts_last, tuning.group);
        // A half unit takes a bit more than half the time. Sharing x reads more from L2 than sharing W: 5 %
        // slower. Smaller tiles: 2 % (measured).
        const int64_t whole = shares_x ? 21 : 20, half = 11;
        const int64_t rounds = whole * ceil_div(s.num_whole, num_clusters()) +
                               half * ceil_div(s.num_items - s.num_whole, num_clusters());
        const int64_t time = rounds * columns * (columns < tile_columns[0] ? 102 : 100);
        if (time >= best_time) continue;
        best_time = time;
        best = {s, columns};
      }
    }
  }
  return best;
}

}  // namespace

WideGemmWeight make_wide_gemm_weight(const void* data, int64_t n, int64_t k, DType dtype, bool silu_mul,
                                     const float* scale, int32_t num_scales) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    refuse("dtype", std::to_string(static_cast<int>(dtype)), "1 (bfloat16), 2 (float16)");
  }
  check_range("n", n, 8, 1 << 28);
  check_range("k", k, scale != nullptr ? gemm::kBoxRowBytes : gemm::kBoxColumns, 1 << 24);
  const int64_t vector = scale != nullptr ? 16 : 8;  // elements in 16 bytes
  if (k % vector != 0) refuse("k", std::to_string(k), "multiples of " + std::to_string(vector));
  if (silu_mul && n % 16 != 0) refuse("n with silu_mul", std::to_string(n), "multiples of 16");
  if (n % 8 != 0) refuse("n", std::to_string(n), "multiples of 8");
  if (!is_aligned(data, 16)) throw std::invalid_argument("w: must be 16-byte aligned");
  if (!is_aligned(scale, 8)) throw std::invalid_argument("scale: must be 8-byte aligned");
  const int32_t num_blocks = ceil_div(k, gemm::kBoxRowBytes);
  if (num_scales != 1 && (scale == nullptr || num_scales != num_blocks)) {
    refuse("num_scales", std::to_string(num_scales), "1, with scales " + std::to_string(num_blocks));
  }
  WideGemmWeight weight;
  weight.data = data;
  weight.n = n;
  weight.k = k;
  weight.dtype = dtype;
  weight.silu_mul = silu_mul;
  weight.scale = scale;
  weight.num_scales = num_scales;
  return weight;
}

void launch_wide_gemm(const WideGemmParams& p, cudaStream_t stream) {
  const WideGemmWeight& w = *p.weight;
  check_range("num_rows", p.num_rows, 0, 1 << 24);
  if (p.num_rows == 0) return;
  const int64_t n_out = w.silu_mul ? w.n / 2 : w.n;
  gemm::check_tensors(p);
  if (w.num_scales != 1) refuse("num_scales", std::to_string(w.num_scales), "1");
  if (!is_aligned(p.bias, 4)) throw std::invalid_argument("bias: must be 4-byte aligned");

  int32_t tile_columns[2] = {2 * kWeightBox, 0};
  if (w.silu_mul) {
    tile_columns[0] = kWeightBox;
    tile_columns[1] = kSmallWeightBox;
    const int32_t columns = p.tuning.columns;
    if (columns != 0 && columns != kWeightBox && columns != kSmallWeightBox) {
      refuse("tuning.columns", std::to_string(columns), "0, 128, 112");
    }
    if (columns == kWeightBox) tile_columns[1] = 0;
    if (columns == kSmallWeightBox) tile_columns[0] = 0;
  }
  const Choice choice = choose_schedule(p.num_rows, n_out, tile_columns, p.tuning);
  const int32_t box = w.silu_mul ? choice.tile_columns : kWeightBox;

  KernelArgs args;
  args.weight = gemm::make_operand_map(w, w.data, w.n, w.k, box);
  args.x = gemm::make_operand_map(w, p.x, p.num_rows, p.stride_x, gemm::wide::kRowBox);
  args.out =
      make_tensor_map(w.dtype, p.out, p.num_rows, n_out, std::max(p.stride_out, n_out), gemm::wide::kRowBox);
  args.schedule = choice.schedule;
  args.n_out = static_cast<int32_t>(n_out);
  args.num_steps = ceil_div(w.k, gemm::step_columns(w));
  args.second_box = w.silu_mul ? args.n_out : box;
  args.bias = p.bias;
  args.x_scale = p.x_scale;
  args.weight_scale = w.scale;

  LaunchConfig config;
  config.grid = 2 * std::min(num_clusters(), args.schedule.num_items);
  config.overlaps = p.overlaps;
  config.stream = stream;
  const auto launch_types = [&]<class Element, class T>(Type<Element>, Type<T>) {
    const auto launch_kernel = !w.silu_mul ? gemm::wide::launch_kernel<Element, T, false, kWeightBox>
                               : box == kWeightBox
                                   ? gemm::wide::launch_kernel<Element, T, true, kWeightBox>
                                   : gemm::wide::launch_kernel<Element, T, true, kSmallWeightBox>;
    launch_kernel(config, args);
  };
  const auto launch_type = [&](auto type) {
    w.scale != nullptr ? launch_types(Type<__nv_fp8_e4m3>{}, type) : launch_types(type, type);
  };
  w.dtype == DType::kBFloat16 ? launch_type(Type<__nv_bfloat16>{}) : launch_type(Type<__half>{});
}

}  // namespace quire::cuda
