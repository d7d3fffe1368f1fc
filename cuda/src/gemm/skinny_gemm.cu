#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <iterator>

#include "common/dispatch.h"
#include "common/launch.h"
#include "common/tensor_map.h"
#include "gemm/device.h"
#include "kernels.h"
#include "quire/cuda/gemm.h"
#include "tensor_map.h"

namespace quire::cuda {
namespace {

using gemm::ceil_div;
using gemm::kBoxColumns;
using gemm::kBoxRows;
using gemm::KernelArgs;
using gemm::kStepColumns;
using gemm::make_tensor_map;
using gemm::num_sms;

// How many tiles of a weight's launch are taken, beyond each block's first: 0 between launches. Weights share
// these when there are more of them; calls on one stream may, since no block takes a tile before the kernels
// before have ended.
constexpr int kNumCounters = 4096;
__device__ uint32_t taken_tiles[kNumCounters];

uint32_t* next_counter() {
  static std::atomic<uint32_t> count{0};
  void* counters = nullptr;
  check(cudaGetSymbolAddress(&counters, taken_tiles), "cudaGetSymbolAddress");
  return static_cast<uint32_t*>(counters) + count++ % kNumCounters;
}

// k: columns of 16 bits. Four dimensions; a box is 64 rows of a tile. With silu_mul a tile is 8 gate rows,
// the 8 up rows that belong to them, and so on.
CUtensorMap make_weight_map(DType dtype, const void* data, int64_t n, int64_t k, bool silu_mul) {
  if (!silu_mul) {
    return make_tensor_map(dtype, data,
                           {{k, 1, kBoxColumns}, {n, k, kBoxRows}, {1, n * k, 1}, {1, n * k, 1}});
  }
  return make_tensor_map(dtype, data,
                         {{k, 1, kBoxColumns}, {8, k, 8}, {2, n / 2 * k, 2}, {n / 16, 8 * k, kBoxRows / 16}});
}

bool is_four_bit(WeightFormat format) { return gemm::bits_of(format) == 4; }

int32_t group_shift(const SkinnyGemmWeight& w) {
  if (w.scales.num_scales == 1) return gemm::kWholeRow;
  return std::countr_zero(static_cast<uint64_t>(w.k / w.scales.num_scales / gemm::kGroupUnit));
}

// Of a row, in a load of W.
int num_groups(const SkinnyGemmWeight& w) { return std::max(gemm::kGroupUnits >> group_shift(w), 1); }

// Of [groups, rows rounded up] scales or zeros. A box's rows are in the order of the rows of a tile of W.
CUtensorMap make_groups_map(const SkinnyGemmWeight& w, const void* data) {
  const int64_t n = w.n, stride = ceil_div(n, kBoxRows) * kBoxRows, groups = w.scales.num_scales;
  using Sizes = cuuint64_t;
  using Boxes = cuuint32_t;
  const Boxes box_groups = static_cast<Boxes>(num_groups(w));
  const Sizes row_bytes = static_cast<Sizes>(stride * 2), all = static_cast<Sizes>(groups);
  const Sizes sizes[] = {static_cast<Sizes>(stride), all, 1, 1};
  const Sizes strides[] = {row_bytes, row_bytes * all, row_bytes * all};
  const Boxes box[] = {kBoxRows, box_groups, 1, 1};
  const Sizes silu_sizes[] = {8, 2, static_cast<Sizes>(n / 16), all};
  const Sizes silu_strides[] = {static_cast<Sizes>(n), 16, row_bytes};
  const Boxes silu_box[] = {8, 2, kBoxRows / 16, box_groups};
  return encode_tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, data, w.silu_mul ? silu_sizes : sizes,
                           w.silu_mul ? silu_strides : strides, w.silu_mul ? silu_box : box,
                           CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
}

// Of a row of W, in elements of 16 bits, as the copy engine and the rings count.
int64_t stored_columns(const SkinnyGemmWeight& w) { return w.k * gemm::bits_of(w.scales.format) / 16; }

int num_tiles(const SkinnyGemmWeight& w) { return static_cast<int>((w.n + kBoxRows - 1) / kBoxRows); }

// How a launch is cut into blocks. Two blocks of a kernel fit on an SM. All of it is measured: the fastest of
// what was tried for the shapes of 8B and 1B models (docs/kernels/skinny_gemm.md).
struct Cut {
  int parts = 1;
  int blocks_per_sm = 2;
  int trigger = 4;
  int in_flight = 2;  // no more than the memory's rate needs, see skinny_gemm.cuh
};

constexpr int64_t kLongPart = 4096;  // stored columns in which the block's first and last loads weigh little

int double_parts(const SkinnyGemmWeight& w, int enough_blocks) {
  constexpr int kMaxParts = 4;
  constexpr int64_t kMinPart = 256;  // a shorter part does not pay for the exchange
  int parts = 1;
  while (parts < kMaxParts && num_tiles(w) * parts < enough_blocks &&
         stored_columns(w) >= 2 * parts * kMinPart) {
    parts *= 2;
  }
  return parts;
}

// Takes n, k and the format alone.
Cut cut_for_few_rows(const SkinnyGemmWeight& w) {
  constexpr int64_t kLong = 8192;  // columns of which fewer parts suffice
  const int sms = num_sms(), tiles = num_tiles(w);
  const int64_t k = stored_columns(w);
  Cut cut;
  cut.parts = double_parts(w, k >= kLong ? sms * 2 / 3 : sms * 7 / 5);
  const bool has_short_parts = cut.parts > 1 && k < kLongPart * cut.parts;
  if (tiles <= 2 * sms && !has_short_parts) cut.trigger = 8;
  // Where a kernel fills all places, the next one's blocks need a third.
  const int blocks = tiles * cut.parts;
  if (cut.parts > 1 && blocks > sms * 9 / 5 && blocks <= 2 * sms) cut.blocks_per_sm = 3;
  if (blocks <= sms && k >= kLongPart * cut.parts) cut.in_flight = 3;
  return cut;
}

// More rows make each exchange longer.
Cut cut_for_many_rows(const SkinnyGemmWeight& w) {
  Cut cut;
  const int sms = num_sms();
  cut.parts = double_parts(w, sms * 9 / 10);
  // Equal long parts, a block each, end far apart: what the fast SMs have left is for the next kernel's W.
  if (num_tiles(w) * cut.parts <= sms && stored_columns(w) >= kLongPart * cut.parts) cut.trigger = 14;
  return cut;
}

void check_x(const SkinnyGemmWeight& w, const SkinnyGemmParams& p) {
  if (!is_aligned(p.x, 16)) throw std::invalid_argument("x: must be 16-byte aligned");
  if (p.stride_x % 8 != 0) refuse("stride_x", std::to_string(p.stride_x), "multiples of 8");
  check_range("stride_x", p.stride_x, p.rows == nullptr && p.num_rows == 1 ? 0 : w.k, INT32_MAX);
  if (p.rows != nullptr) check_range("num_x_rows", p.num_x_rows, 1, INT32_MAX);
}

void check_float8_scales(const WeightScales& w, int64_t k) {
  const int32_t of_blocks = ceil_div(k, kStepColumns);
  if (w.num_scales != 1 && w.num_scales != of_blocks) {
    refuse("num_scales", std::to_string(w.num_scales), "1, " + std::to_string(of_blocks));
  }
}

void check_groups(const WeightScales& w, int64_t k) {
  const bool is_mxfp4 = w.format == WeightFormat::kMxfp4;
  bool is_allowed = w.num_scales == 1 && !is_mxfp4;
  for (const int size : {32, 64, 128}) {
    if (is_mxfp4 && size > 32) break;
    is_allowed |= k % size == 0 && w.num_scales == k / size;
  }
  if (!is_allowed) {
    const std::string of_32 = "k / 32";
    refuse("num_scales", std::to_string(w.num_scales), is_mxfp4 ? of_32 : of_32 + ", k / 64, k / 128, 1");
  }
  if (!is_aligned(w.scales, 16)) throw std::invalid_argument("scales: must be 16-byte aligned");
  if (!is_aligned(w.zeros, 16)) throw std::invalid_argument("zeros: must be 16-byte aligned");
  if (is_mxfp4 && w.zeros != nullptr) throw std::invalid_argument("zeros: got some; allowed: null of mxfp4");
}

void check_scales(const WeightScales& w, int64_t k) {
  if (w.format == WeightFormat::k16Bits) return;
  if (w.format < WeightFormat::k16Bits || w.format > WeightFormat::kMxfp4) {
    refuse("format", std::to_string(static_cast<int>(w.format)),
           "0 (16 bits), 1 (float8), 2 (int4), 3 (mxfp4)");
  }
  const int bits = gemm::bits_of(w.format);
  const int64_t row_unit = 16 * 8 / bits;  // the copy engine's 16 bytes
  check_range("k", k, 8 * row_unit, 1 << 24);
  if (k % row_unit != 0) refuse("k", std::to_string(k), "multiples of " + std::to_string(row_unit));
  if (w.scales == nullptr) throw std::invalid_argument("scales: got null; allowed: those of each row");
  if (is_four_bit(w.format)) {
    check_groups(w, k);
  } else {
    check_float8_scales(w, k);
  }
}

template <class T>
void launch_format(WeightFormat format, int padded_rows, const LaunchConfig& config, const KernelArgs& args) {
  switch (format) {
    case WeightFormat::k16Bits:
      return gemm::launch_kernel<T, WeightFormat::k16Bits>(padded_rows, config, args);
    case WeightFormat::kFloat8:
      return gemm::launch_kernel<T, WeightFormat::kFloat8>(padded_rows, config, args);
    case WeightFormat::kInt4:
      return gemm::launch_kernel<T, WeightFormat::kInt4>(padded_rows, config, args);
    case WeightFormat::kMxfp4:
      return gemm::launch_kernel<T, WeightFormat::kMxfp4>(padded_rows, config, args);
  }
}

template <class Map>
void keep_map(Map& to, const CUtensorMap& map) {
  static_assert(sizeof(map) == sizeof(to));
  std::memcpy(to, &map, sizeof(map));
}

void set_scales(KernelArgs& args, const SkinnyGemmWeight& w) {
  if (!is_four_bit(w.scales.format)) {
    args.scales = static_cast<const float*>(w.scales.scales);
    args.num_scales = w.scales.num_scales;
    return;
  }
  constexpr int kStageUnit = 1024;  // bytes; boxes with the swizzle begin at one
  args.groups = gemm::groups_of(w);
  const int bytes = args.groups.box_bytes * (args.groups.has_zeros ? 2 : 1);
  args.stage_bytes = gemm::kLoadBytes + ceil_div(bytes, kStageUnit) * kStageUnit;
}

}  // namespace

gemm::Groups gemm::groups_of(const SkinnyGemmWeight& w) {
  Groups groups;
  std::memcpy(&groups.scales, w.scales_map, sizeof(groups.scales));
  std::memcpy(&groups.zeros, w.zeros_map, sizeof(groups.zeros));
  groups.shift = group_shift(w);
  groups.has_zeros = w.scales.zeros != nullptr;
  groups.box_bytes = num_groups(w) * kBoxRows * 2;
  return groups;
}

SkinnyGemmWeight make_skinny_gemm_weight(const void* data, int64_t n, int64_t k, DType dtype, bool silu_mul,
                                         const WeightScales& scales) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    refuse("dtype", std::to_string(static_cast<int>(dtype)), "1 (bfloat16), 2 (float16)");
  }
  check_range("n", n, 1, 1 << 28);
  check_range("k", k, kBoxColumns, 1 << 24);
  if (k % 8 != 0) refuse("k", std::to_string(k), "multiples of 8");
  if (silu_mul && n % 16 != 0) refuse("n with silu_mul", std::to_string(n), "multiples of 16");
  if (!is_aligned(data, 16)) throw std::invalid_argument("w: must be 16-byte aligned");
  check_scales(scales, k);
  SkinnyGemmWeight weight;
  weight.data = data;
  weight.scales = scales;
  weight.n = n;
  weight.k = k;
  weight.dtype = dtype;
  weight.silu_mul = silu_mul;
  weight.taken = next_counter();
  keep_map(weight.tensor_map, make_weight_map(dtype, data, n, stored_columns(weight), silu_mul));
  if (is_four_bit(scales.format)) {
    keep_map(weight.scales_map, make_groups_map(weight, scales.scales));
    if (scales.zeros != nullptr) keep_map(weight.zeros_map, make_groups_map(weight, scales.zeros));
  }
  return weight;
}

void launch_skinny_gemm(const SkinnyGemmParams& p, cudaStream_t stream) {
  const SkinnyGemmWeight& w = *p.weight;
  const bool is_widened = w.scales.format != WeightFormat::k16Bits;
  check_range("num_rows", p.num_rows, 0, is_widened ? kWidenedGemmMaxRows : kSkinnyGemmMaxRows);
  if (p.num_rows == 0) return;
  check_x(w, p);
  const int64_t n_out = w.silu_mul ? w.n / 2 : w.n;
  check_range("stride_out", p.stride_out, p.num_rows == 1 ? 0 : n_out, INT64_MAX);

  constexpr int kFewRows = 32;
  Cut cut = p.num_rows <= kFewRows || p.is_invariant ? cut_for_few_rows(w) : cut_for_many_rows(w);
  if (p.num_rows > kFewRows) cut.blocks_per_sm = 2;  // a third would leave the rings too little
  const SkinnyGemmTuning& tuning = p.tuning;
  if (tuning.parts > 0) cut.parts = tuning.parts;
  if (tuning.blocks_per_sm > 0) cut.blocks_per_sm = tuning.blocks_per_sm;
  if (tuning.trigger >= 0) cut.trigger = tuning.trigger;
  if (cut.parts != 1 && cut.parts != 2 && cut.parts != 4) {
    refuse("tuning.parts", std::to_string(cut.parts), "1, 2, 4");
  }
  constexpr int kPadded[] = {8, 16, 24, 32, 48, kSkinnyGemmMaxRows};
  const int padded_rows = *std::lower_bound(std::begin(kPadded), std::end(kPadded), p.num_rows);

  KernelArgs args;
  std::memcpy(&args.weight, w.tensor_map, sizeof(args.weight));
  const bool gathers = p.rows != nullptr;
  const int64_t x_rows = gathers ? p.num_x_rows : p.num_rows;
  args.x = make_tensor_map(w.dtype, p.x, x_rows, w.k, std::max(p.stride_x, w.k), gathers ? 1 : padded_rows);
  args.num_rows = p.num_rows;
  args.n_out = static_cast<int32_t>(n_out);
  args.num_tiles = num_tiles(w);
  args.num_steps = ceil_div(stored_columns(w), kStepColumns);
  args.num_x_steps = ceil_div(w.k, kStepColumns);
  set_scales(args, w);
  while (cut.parts > args.num_steps) cut.parts /= 2;
  args.parts_log2 = cut.parts / 2;
  args.trigger = cut.trigger;
  args.silu_mul = w.silu_mul;
  args.is_wide = n_out % 8 == 0 && p.stride_out % 8 == 0 && is_aligned(p.out, 16);
  args.rows = p.rows;
  args.bias = p.bias;
  args.out = p.out;
  args.stride_out = p.stride_out;

  args.taken = w.taken;
  args.blocks_per_sm = cut.blocks_per_sm;

  LaunchConfig config;
  int blocks = args.num_tiles * cut.parts;
  if (cut.parts == 1) {
    blocks = std::min(blocks, tuning.num_blocks > 0 ? tuning.num_blocks : num_sms() * cut.blocks_per_sm);
  }
  args.is_dynamic = blocks < args.num_tiles;
  args.in_flight = tuning.in_flight > 0 ? tuning.in_flight : cut.in_flight;
  config.grid = blocks;
  config.cluster = cut.parts;
  config.overlaps = p.overlaps;
  config.stream = stream;
  if (w.dtype == DType::kBFloat16) {
    launch_format<__nv_bfloat16>(w.scales.format, padded_rows, config, args);
  } else {
    launch_format<__half>(w.scales.format, padded_rows, config, args);
  }
}

}  // namespace quire::cuda
