// The GEMMs for few, some and many rows; each twice in a row, so that the second one's loads of W overlap the
// first one.
#include "launches.h"
#include "quire/cuda/gemm.h"
#include "quire/cuda/layers.h"

namespace quire::launches {
namespace {

constexpr int64_t kK = 576;  // no whole number of the kernels' pieces of 128 and 256
constexpr float kScale = 0.04f;

double silu(double gate) { return gate / (1 + std::exp(-gate)); }

// x [rows, kK], W [n, kK] and what out should be.
struct Case {
  Case(int32_t num_rows, int64_t n, bool silu_mul)
      : num_rows(num_rows),
        n(n),
        columns(silu_mul ? n / 2 : n),
        host_x(random_values(num_rows * kK, 1, 2)),
        host_w(random_values(n * kK, kScale, 3)),
        x(host_x),
        w(host_w),
        out(num_rows * columns, kPoisoned) {
    find_wanted();
  }

  void find_wanted() {
    wanted.clear();
    for (int64_t m = 0; m < num_rows; ++m) {
      for (int64_t column = 0; column < columns; ++column) {
        const double value = product(m, column);
        wanted.push_back(columns < n ? silu(value) * product(m, column + columns) : value);
      }
    }
  }

  double product(int64_t m, int64_t row) const {
    double sum = 0;
    for (int64_t k = 0; k < kK; ++k)
      sum += double{to_float(host_x[m * kK + k])} * to_float(host_w[row * kK + k]);
    return sum;
  }

  template <class Params>
  Params params() const {
    Params p;
    p.num_rows = num_rows;
    p.x = x.data();
    p.stride_x = kK;
    p.out = out.data();
    p.stride_out = columns;
    return p;
  }

  int32_t num_rows;
  int64_t n, columns;
  std::vector<BFloat16> host_x, host_w;
  Device<BFloat16> x, w, out;
  std::vector<double> wanted;
};

std::string named(const char* kernel, const Case& c, bool silu_mul) {
  return std::string(kernel) + " rows " + std::to_string(c.num_rows) + " n " + std::to_string(c.n) +
         (silu_mul ? " silu_mul" : "");
}

void skinny(int32_t num_rows, bool silu_mul) {
  const Case c(num_rows, 400, silu_mul);
  const auto weight = cuda::make_skinny_gemm_weight(c.w.data(), c.n, kK, DType::kBFloat16, silu_mul);
  for (const int32_t parts : {0, 1, 4}) {
    auto p = c.params<SkinnyGemmParams>();
    p.weight = &weight;
    p.tuning.parts = parts;
    c.out.poison();
    for (int i = 0; i < 2; ++i) cuda::launch_skinny_gemm(p, nullptr);
    check_close(c.out.host(), c.wanted,
                named("skinny_gemm", c, silu_mul) + " parts " + std::to_string(parts));
  }
}

// k in several numbers of parts.
template <class Params, class Tuning>
void run_cuts(const Case& c, const SkinnyGemmWeight& weight, std::initializer_list<Tuning> tunings,
              void (*launch)(const Params&, cudaStream_t), const std::string& name) {
  for (const Tuning& tuning : tunings) {
    auto p = c.params<Params>();
    p.weight = &weight;
    p.tuning = tuning;
    c.out.poison();
    for (int i = 0; i < 2; ++i) launch(p, nullptr);
    check_close(c.out.host(), c.wanted, name + " parts " + std::to_string(tuning.parts));
  }
}

// A weight with scales, by the GEMM for so many rows.
void scaled(const Case& c, const void* w, bool silu_mul, const WeightScales& scales, const std::string& of) {
  const auto weight = cuda::make_skinny_gemm_weight(w, c.n, kK, DType::kBFloat16, silu_mul, scales);
  if (c.num_rows <= kWidenedGemmMaxRows) {
    run_cuts<SkinnyGemmParams, SkinnyGemmTuning>(c, weight, {{}, {.parts = 1}, {.parts = 4}},
                                                 cuda::launch_skinny_gemm,
                                                 named("skinny_gemm", c, silu_mul) + of);
  } else {
    run_cuts<WidenedGemmParams, SplitGemmTuning>(c, weight,
                                                 {{},
                                                  {.parts = 1, .columns = 128, .rows = 128},
                                                  {.parts = 2, .columns = 64, .rows = 96},
                                                  {.parts = 2, .columns = 128, .rows = 96}},
                                                 cuda::launch_widened_gemm,
                                                 named("widened_gemm", c, silu_mul) + of);
  }
}

// Weights of e4m3: small whole numbers, which it has exactly, in the order of columns that the kernel reads.
void scaled_float8(int32_t num_rows, bool silu_mul) {
  Case c(num_rows, 400, silu_mul);
  std::vector<uint8_t> codes(c.n * kK);
  for (size_t i = 0; i < codes.size(); i += 16) {
    for (size_t p = 0; p < 16; ++p) {
      const int kCodes[] = {0x00, 0x38, 0x40, 0x44, 0xb8, 0xc0};  // 0, 1, 2, 3, -1, -2
      const double kValues[] = {0, 1, 2, 3, -1, -2};
      const size_t column = i + kFloat8Columns[p], code = column * 7 % 6;
      codes[i + p] = static_cast<uint8_t>(kCodes[code]);
      c.host_w[column] = to_bfloat16(static_cast<float>(kValues[code] * kScale));
    }
  }
  c.find_wanted();
  const int num_blocks = (kK + 127) / 128;
  const Device<uint8_t> w(codes);
  const Device<float> scales(std::vector<float>(c.n * num_blocks, kScale));
  for (const int num_scales : {1, num_blocks}) {
    scaled(c, w.data(), silu_mul, {WeightFormat::kFloat8, scales.data(), num_scales}, " of float8");
  }
}

// Weights of four bits, each column another code, in the order of columns that the kernel reads.
void four_bits(int32_t num_rows, bool silu_mul, WeightFormat format, bool has_zeros) {
  constexpr double kE2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
  constexpr float kGroupScale = 0.015625f;
  constexpr uint16_t kZero = 5;
  Case c(num_rows, 400, silu_mul);
  std::vector<uint8_t> bytes(c.n * kK / 2);
  for (size_t first = 0; first < bytes.size() * 2; first += 32) {
    for (int i = 0; i < 32; ++i) {
      const size_t column = first + four_bit_column(i / 8, i % 8);
      const int code = static_cast<int>(column * 7 / 3 % 16);
      bytes[(first + i) / 2] |= static_cast<uint8_t>(code << i % 2 * 4);
      const double value = format == WeightFormat::kMxfp4 ? kE2m1[code] : code - (has_zeros ? kZero : 8);
      c.host_w[column] = to_bfloat16(static_cast<float>(value * kGroupScale));
    }
  }
  c.find_wanted();
  const Device<uint8_t> w(bytes);
  for (const int32_t group : {32, 64}) {
    const int32_t num_groups = kK / group;
    if (format == WeightFormat::kMxfp4 && group != 32) continue;
    const size_t places = static_cast<size_t>(num_groups) * ((c.n + 63) / 64 * 64);
    const Device<BFloat16> scales(std::vector<BFloat16>(places, to_bfloat16(kGroupScale)));
    const Device<uint16_t> zeros(std::vector<uint16_t>(places, kZero));
    scaled(c, w.data(), silu_mul, {format, scales.data(), num_groups, has_zeros ? zeros.data() : nullptr},
           " of four bits");
  }
}

void split(int32_t num_rows) {
  const Case c(num_rows, 264, false);
  const auto weight = cuda::make_wide_gemm_weight(c.w.data(), c.n, kK, DType::kBFloat16, false, nullptr, 1);
  const SplitGemmTuning tunings[] = {{}, {1, 128, 128}, {3, 64, 96}, {8, 64, 128}};
  for (const auto& tuning : tunings) {
    auto p = c.params<SplitGemmParams>();
    p.weight = &weight;
    p.tuning = tuning;
    c.out.poison();
    for (int i = 0; i < 2; ++i) cuda::launch_split_gemm(p, nullptr);
    check_close(c.out.host(), c.wanted,
                named("split_gemm", c, false) + " parts " + std::to_string(tuning.parts));
  }
}

void wide(int32_t num_rows, bool silu_mul) {
  const Case c(num_rows, 528, silu_mul);
  const auto weight =
      cuda::make_wide_gemm_weight(c.w.data(), c.n, kK, DType::kBFloat16, silu_mul, nullptr, 1);
  for (const int32_t pair : {0, 1}) {
    auto p = c.params<WideGemmParams>();
    p.weight = &weight;
    p.tuning.pair = pair;
    c.out.poison();
    for (int i = 0; i < 2; ++i) cuda::launch_wide_gemm(p, nullptr);
    check_close(c.out.host(), c.wanted, named("wide_gemm", c, silu_mul) + " pair " + std::to_string(pair));
  }
}

// Float8 rows and weights: whole numbers times powers of two, which e4m3 holds exactly.
void float8(int32_t num_rows, bool silu_mul, bool is_blocked = false) {
  const int64_t n = 528, columns = silu_mul ? n / 2 : n;
  std::vector<BFloat16> host_x(num_rows * kK);
  std::vector<uint8_t> host_w(n * kK);
  const int32_t num_scales = is_blocked ? (kK + 127) / 128 : 1;
  std::vector<float> scales(n * num_scales);
  for (size_t i = 0; i < host_x.size(); ++i) host_x[i] = to_bfloat16(static_cast<float>(i * 7 % 15) - 7);
  for (int64_t row = 0; row < num_rows; ++row) host_x[row * kK] = to_bfloat16(448);  // a scale of 1
  constexpr uint8_t kOnes[] = {0x00, 0x38, 0xb8};                                    // 0, 1, -1
  for (size_t i = 0; i < host_w.size(); ++i) host_w[i] = kOnes[i * i % 31 % 3];
  for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<float>(1 + i / num_scales % 3) / 64;
  const auto product = [&](int64_t m, int64_t row) {
    double sum = 0;
    for (int64_t k = 0; k < kK; ++k) {
      // Position k of a row of W holds this column.
      const int64_t column = k / 16 * 16 + kFloat8Columns[k % 16];
      const uint8_t w = host_w[row * kK + k];
      sum += (w == 0x38 ? 1 : w == 0xb8 ? -1 : 0) * double{to_float(host_x[m * kK + column])};
    }
    return sum * scales[row * num_scales];
  };
  std::vector<double> wanted;
  for (int64_t m = 0; m < num_rows; ++m) {
    for (int64_t column = 0; column < columns; ++column) {
      const double value = product(m, column);
      wanted.push_back(silu_mul ? silu(value) * product(m, column + columns) : value);
    }
  }
  const Device<BFloat16> x(host_x), out(num_rows * columns, kPoisoned);
  const Device<uint8_t> w(host_w), quantized(host_x.size(), kPoisoned);
  const Device<float> w_scale(scales), x_scale(num_rows * num_scales, kPoisoned);
  QuantizeRowsParams q;
  q.num_rows = num_rows;
  q.size = kK;
  q.x = x.data();
  q.stride_x = kK;
  q.out = quantized.data();
  q.scale = x_scale.data();
  q.num_scales = num_scales;
  const auto weight =
      cuda::make_wide_gemm_weight(w.data(), n, kK, DType::kBFloat16, silu_mul, w_scale.data(), num_scales);
  const auto run = [&](auto p, auto launch_gemm, const std::string& name) {
    p.weight = &weight;
    p.num_rows = num_rows;
    p.x = quantized.data();
    p.stride_x = kK;
    p.x_scale = x_scale.data();
    p.out = out.data();
    p.stride_out = columns;
    out.poison();
    cuda::launch_quantize_rows(q, nullptr);
    for (int i = 0; i < 2; ++i) launch_gemm(p, nullptr);
    check_close(out.host(), wanted,
                name + " of float8, rows " + std::to_string(num_rows) + (silu_mul ? " silu_mul" : ""));
  };
  if (!is_blocked) run(WideGemmParams(), cuda::launch_wide_gemm, "wide_gemm");
  if (!silu_mul || num_rows <= 64) run(SplitGemmParams(), cuda::launch_split_gemm, "split_gemm");
}

}  // namespace

void gemms() {
  for (const bool silu_mul : {false, true}) {
    for (const int32_t num_rows : {1, 17, 40, 64}) skinny(num_rows, silu_mul);
    for (const int32_t num_rows : {1, 17, 32, 33, 65, 129, 300}) scaled_float8(num_rows, silu_mul);
    for (const int32_t num_rows : {1, 32, 129}) {
      four_bits(num_rows, silu_mul, WeightFormat::kInt4, false);
      four_bits(num_rows, silu_mul, WeightFormat::kInt4, true);
      four_bits(num_rows, silu_mul, WeightFormat::kMxfp4, false);
    }
    for (const int32_t num_rows : {65, 300}) wide(num_rows, silu_mul);
    for (const int32_t num_rows : {20, 64, 65, 300}) float8(num_rows, silu_mul);
  }
  for (const int32_t num_rows : {65, 129, 256}) split(num_rows);
  for (const int32_t num_rows : {20, 64, 129}) float8(num_rows, false, true);
}

}  // namespace quire::launches
