#include <algorithm>
#include <cstring>

#include "common/dispatch.h"
#include "common/launch.h"
#include "gemm/device.h"
#include "operands.h"
#include "quire/cuda/gemm.h"
#include "widened_kernel.h"

namespace quire::cuda {
namespace {

using gemm::ceil_div;
using gemm::split::kGroupColumns;
using gemm::split::kSmallTileRows;
using gemm::split::kSomeRows;
using gemm::split::kTileRows;

struct Cut {
  int32_t columns, parts, rows;
};

// One round, k in two parts where there is room.
Cut choose_cut(const SkinnyGemmWeight& w, int32_t num_rows, int32_t num_steps,
               const SplitGemmTuning& tuning) {
  const bool is_small = ceil_div(num_rows, kSmallTileRows) == ceil_div(num_rows, kTileRows);
  Cut cut{2 * kGroupColumns, 1, is_small ? kSmallTileRows : kTileRows};
  if (num_rows <= kSomeRows) cut.rows = kSomeRows;
  if (tuning.rows > 0) cut.rows = tuning.rows;
  if (cut.rows != kSomeRows && cut.rows != kSmallTileRows && cut.rows != kTileRows) {
    refuse("tuning.rows", std::to_string(cut.rows), "0, 64, 96, 128");
  }
  constexpr struct {
    int32_t columns, parts;
  } kPreferred[] = {{kGroupColumns, 2}, {2 * kGroupColumns, 2}, {kGroupColumns, 1}};
  for (const auto& [columns, parts] : kPreferred) {
    if (ceil_div(w.n, columns) * ceil_div(num_rows, cut.rows) * parts > gemm::num_sms()) continue;
    cut.columns = columns;
    cut.parts = parts;
    break;
  }
  if (tuning.columns > 0) cut.columns = tuning.columns;
  if (tuning.parts > 0) cut.parts = tuning.parts;
  cut.parts = std::min(cut.parts, num_steps);
  check_range("tuning.parts", cut.parts, 1, gemm::split::kMaxParts);
  if (cut.columns != kGroupColumns && cut.columns != 2 * kGroupColumns) {
    refuse("tuning.columns", std::to_string(cut.columns), "0, 64, 128");
  }
  return cut;
}

template <WeightFormat kFormat, class T>
void launch_tile(const Cut& cut, const LaunchConfig& config, const gemm::split::WidenedArgs& args) {
  using gemm::split::launch_widened_kernel;
  const auto with_groups = [&]<int kRows>() {
    cut.columns == kGroupColumns ? launch_widened_kernel<kFormat, T, kRows, 1>(config, args)
                                 : launch_widened_kernel<kFormat, T, kRows, 2>(config, args);
  };
  if (cut.rows == kSomeRows) return with_groups.template operator()<kSomeRows>();
  cut.rows == kTileRows ? with_groups.template operator()<kTileRows>()
                        : with_groups.template operator()<kSmallTileRows>();
}

template <class T>
void launch_format(WeightFormat format, const Cut& cut, const LaunchConfig& config,
                   const gemm::split::WidenedArgs& args) {
  switch (format) {
    case WeightFormat::kFloat8:
      return launch_tile<WeightFormat::kFloat8, T>(cut, config, args);
    case WeightFormat::kInt4:
      return launch_tile<WeightFormat::kInt4, T>(cut, config, args);
    default:
      return launch_tile<WeightFormat::kMxfp4, T>(cut, config, args);
  }
}

}  // namespace

void launch_widened_gemm(const WidenedGemmParams& p, cudaStream_t stream) {
  const SkinnyGemmWeight& w = *p.weight;
  check_range("num_rows", p.num_rows, 0, 1 << 24);
  if (p.num_rows == 0) return;
  const WeightFormat format = w.scales.format;
  if (format == WeightFormat::k16Bits) {
    refuse("weight.format", "0 (16 bits)", "1 (float8), 2 (int4), 3 (mxfp4)");
  }
  const int64_t n_out = w.silu_mul ? w.n / 2 : w.n;
  if (n_out % 8 != 0) refuse("columns of out", std::to_string(n_out), "multiples of 8");
  gemm::check_rows(p, w.k, n_out, 8);

  gemm::split::WidenedArgs args;
  args.num_steps = ceil_div(w.k, gemm::split::x_steps_of(format) * gemm::kBoxColumns);
  const Cut cut = choose_cut(w, p.num_rows, args.num_steps, p.tuning);
  std::memcpy(&args.weight, w.tensor_map, sizeof(args.weight));
  args.x = gemm::make_tensor_map(w.dtype, p.x, p.num_rows, w.k, std::max(p.stride_x, w.k), cut.rows);
  args.num_rows = p.num_rows;
  args.row_tiles = ceil_div(p.num_rows, cut.rows);
  args.n_out = static_cast<int32_t>(n_out);
  args.parts = cut.parts;
  args.bias = p.bias;
  args.out = p.out;
  args.stride_out = p.stride_out;
  args.silu_mul = w.silu_mul;
  if (format == WeightFormat::kFloat8) {
    args.weight_scale = static_cast<const float*>(w.scales.scales);
    args.num_scales = w.scales.num_scales;
  } else {
    args.groups = gemm::groups_of(w);
  }

  LaunchConfig config;
  config.grid = ceil_div(w.n, cut.columns) * args.row_tiles * cut.parts;
  config.cluster = static_cast<unsigned>(cut.parts);
  config.overlaps = p.overlaps;
  config.stream = stream;
  w.dtype == DType::kBFloat16 ? launch_format<__nv_bfloat16>(format, cut, config, args)
                              : launch_format<__half>(format, cut, config, args);
}

}  // namespace quire::cuda
