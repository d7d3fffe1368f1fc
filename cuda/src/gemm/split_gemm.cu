#include <algorithm>

#include "common/dispatch.h"
#include "common/launch.h"
#include "gemm/device.h"
#include "operands.h"
#include "quire/cuda/gemm.h"
#include "split_kernel.h"

namespace quire::cuda {
namespace {

using gemm::ceil_div;
using gemm::num_sms;
using gemm::split::KernelArgs;
using gemm::split::kFewRows;
using gemm::split::kGroupColumns;
using gemm::split::kMaxParts;
using gemm::split::kSmallTileRows;
using gemm::split::kSomeRows;
using gemm::split::kTileRows;
using gemm::split::Scaling;

struct Cut {
  int32_t rows, columns, parts, blocks_per_sm;
};

// One round, of the fewest columns, in two parts of k where there is room. All of it is measured in
// bfloat16: the fastest of what was tried for the shapes of 8B and 1B models (docs/kernels/split_gemm.md).
Cut choose_cut(int64_t n, int64_t k, const SplitGemmParams& p) {
  constexpr int64_t kLong = 8192;  // k of which larger tiles pay for the exchange of their sums
  const bool is_small = ceil_div(p.num_rows, kSmallTileRows) == ceil_div(p.num_rows, kTileRows);
  Cut cut{is_small ? kSmallTileRows : kTileRows, 2 * kGroupColumns, 1, 1};
  if (p.weight->scale != nullptr && p.num_rows <= kSomeRows) {
    cut.rows = p.num_rows <= kFewRows ? kFewRows : kSomeRows;
  }
  if (p.tuning.rows > 0) cut.rows = p.tuning.rows;
  if (p.weight->silu_mul) cut.blocks_per_sm = 2;  // twice as many tiles of half the columns
  if (p.tuning.blocks_per_sm > 0) cut.blocks_per_sm = p.tuning.blocks_per_sm;
  const int32_t row_tiles = ceil_div(p.num_rows, cut.rows);
  const auto fits = [&](int32_t columns, int32_t parts) {
    return ceil_div(n, columns) * row_tiles * parts <= num_sms();
  };
  if (p.weight->silu_mul) {
    // k stays whole.
  } else if (fits(kGroupColumns, 2)) {
    cut.columns = kGroupColumns;
    cut.parts = 2;
  } else if (fits(2 * kGroupColumns, 2) && cut.rows == kTileRows && k >= kLong) {
    cut.parts = 2;
  } else if (fits(kGroupColumns, 1)) {
    cut.columns = kGroupColumns;
  }
  if (p.tuning.columns > 0) cut.columns = p.tuning.columns;
  if (p.tuning.parts > 0) cut.parts = p.tuning.parts;
  cut.parts = std::min(cut.parts, ceil_div(k, gemm::step_columns(*p.weight)));
  return cut;
}

}  // namespace

void launch_split_gemm(const SplitGemmParams& p, cudaStream_t stream) {
  const WideGemmWeight& w = *p.weight;
  check_range("num_rows", p.num_rows, 0, 1 << 24);
  if (p.num_rows == 0) return;
  if (w.silu_mul && (w.scale == nullptr || w.num_scales != 1))
    refuse("silu_mul", "true", "false, but for a scale per row");
  gemm::check_tensors(p);

  KernelArgs args;
  args.num_steps = ceil_div(w.k, gemm::step_columns(w));
  const Cut cut = choose_cut(w.n, w.k, p);
  check_range("tuning.parts", cut.parts, 1, std::min(kMaxParts, cut.rows / 8));
  if (cut.columns != kGroupColumns && cut.columns != 2 * kGroupColumns) {
    refuse("tuning.columns", std::to_string(cut.columns), "0, 64, 128");
  }
  const bool is_few = cut.rows == kFewRows || cut.rows == kSomeRows;
  if (cut.rows != kSmallTileRows && cut.rows != kTileRows && !(w.scale != nullptr && is_few)) {
    refuse("tuning.rows", std::to_string(cut.rows), "0, 96, 128, with scales 32, 64");
  }
  if (w.silu_mul && !(is_few && cut.columns == 2 * kGroupColumns && cut.blocks_per_sm == 2)) {
    refuse("silu_mul", "true", "false, but for up to 64 rows");
  }
  if (cut.blocks_per_sm != 1 && !(cut.blocks_per_sm == 2 && is_few && w.num_scales == 1)) {
    refuse("tuning.blocks_per_sm", std::to_string(cut.blocks_per_sm),
           "0, 1, with up to 64 rows and scales 2");
  }
  const int64_t n_out = w.silu_mul ? w.n / 2 : w.n;
  const int32_t box = w.silu_mul ? kGroupColumns : cut.columns;  // rows of W
  args.weight = gemm::make_operand_map(w, w.data, w.n, w.k, box);
  args.x = gemm::make_operand_map(w, p.x, p.num_rows, p.stride_x, cut.rows);
  args.num_rows = p.num_rows;
  args.row_tiles = ceil_div(p.num_rows, cut.rows);
  args.n_out = static_cast<int32_t>(n_out);
  args.parts = cut.parts;
  args.bias = p.bias;
  args.x_scale = p.x_scale;
  args.weight_scale = w.scale;
  args.num_scales = w.num_scales;
  args.out = p.out;
  args.stride_out = p.stride_out;

  LaunchConfig config;
  config.grid = ceil_div(n_out, box) * args.row_tiles * cut.parts;
  config.cluster = static_cast<unsigned>(cut.parts);
  config.overlaps = p.overlaps;
  config.stream = stream;
  using gemm::split::launch_kernel;
  const auto launch_tile = [&]<class T, Scaling kScaling, int kRows>() {
    constexpr bool kIsFew = kScaling == Scaling::kRows && kRows <= kSomeRows;
    if constexpr (kIsFew) {
      if (w.silu_mul) return launch_kernel<T, kScaling, kRows, 2, 2, true>(config, args);
    }
    const auto with_groups = [&]<int kBlocksPerSm>() {
      cut.columns == kGroupColumns ? launch_kernel<T, kScaling, kRows, 1, kBlocksPerSm, false>(config, args)
                                   : launch_kernel<T, kScaling, kRows, 2, kBlocksPerSm, false>(config, args);
    };
    if constexpr (kIsFew) {
      if (cut.blocks_per_sm == 2) return with_groups.template operator()<2>();
    }
    with_groups.template operator()<1>();
  };
  const auto launch_scaled = [&]<class T, Scaling kScaling>() {
    if constexpr (kScaling != Scaling::kNone) {
      if (cut.rows == kFewRows) return launch_tile.template operator()<T, kScaling, kFewRows>();
      if (cut.rows == kSomeRows) return launch_tile.template operator()<T, kScaling, kSomeRows>();
    }
    if (cut.rows == kSmallTileRows) return launch_tile.template operator()<T, kScaling, kSmallTileRows>();
    return launch_tile.template operator()<T, kScaling, kTileRows>();
  };
  const auto launch_type = [&]<class T>(Type<T>) {
    if (w.scale == nullptr) return launch_scaled.template operator()<T, Scaling::kNone>();
    if (w.num_scales == 1) return launch_scaled.template operator()<T, Scaling::kRows>();
    return launch_scaled.template operator()<T, Scaling::kBlocks>();
  };
  w.dtype == DType::kBFloat16 ? launch_type(Type<__nv_bfloat16>{}) : launch_type(Type<__half>{});
}

}  // namespace quire::cuda
