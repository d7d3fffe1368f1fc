#include <algorithm>
#include <cstring>

#include "common/dispatch.h"
#include "common/launch.h"
#include "kernels.h"
#include "quire/cuda/skinny_gemm.h"
#include "tensor_map.h"

namespace quire::cuda {
namespace {

using gemm::kBoxColumns;
using gemm::kBoxRows;
using gemm::KernelArgs;
using gemm::make_tensor_map;

int num_sms() {
  static const int count = [] {
    int device = 0, sms = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return sms;
  }();
  return count;
}

// Clusters of this size that find an SM for each block: clusters of 4 and 8 leave SMs of some GPCs over.
int num_clusters(int cluster) { return (cluster <= 2 ? num_sms() : num_sms() / 8 * 8) / cluster; }

// The tile, and the parts of k that give most SMs a block. From n and k alone, so that a row's result does
// not depend on the number of rows.
struct Cut {
  int cluster = 1;
  int tile_rows = 128;
};

int num_tiles(const SkinnyGemmWeight& w, int tile_rows) {
  if (w.silu_mul) return static_cast<int>((w.n / 2 + kBoxRows - 1) / kBoxRows);
  return static_cast<int>((w.n + tile_rows - 1) / tile_rows);
}

// Two thirds of the SMs read as fast as all of them, and a part more costs an exchange more. Where tiles of
// 128 rows would have to be cut in 4 for that, smaller tiles cut in 2 are faster (measured).
Cut choose_cut(const SkinnyGemmWeight& w) {
  constexpr int64_t kMinPart = 256;  // elements of k: a shorter part does not pay for the exchange
  const int enough_blocks = num_sms() * 2 / 3;
  Cut cut;
  if (!w.silu_mul && num_tiles(w, 128) * 3 < enough_blocks) cut.tile_rows = 64;
  const int tiles = num_tiles(w, cut.tile_rows);
  while (cut.cluster < 8 && tiles * cut.cluster < enough_blocks && w.k >= 2 * cut.cluster * kMinPart) {
    cut.cluster *= 2;
  }
  return cut;
}

void check_x(const SkinnyGemmWeight& w, const SkinnyGemmParams& p) {
  if (!is_aligned(p.x, 16)) throw std::invalid_argument("x: must be 16-byte aligned");
  if (p.stride_x % 8 != 0) refuse("stride_x", std::to_string(p.stride_x), "multiples of 8");
  check_range("stride_x", p.stride_x, p.rows == nullptr && p.num_rows == 1 ? 0 : w.k, INT32_MAX);
  if (p.rows != nullptr) check_range("num_x_rows", p.num_x_rows, 1, INT32_MAX);
}

}  // namespace

SkinnyGemmWeight make_skinny_gemm_weight(const void* data, int64_t n, int64_t k, DType dtype, bool silu_mul) {
  if (dtype != DType::kBFloat16 && dtype != DType::kFloat16) {
    refuse("dtype", std::to_string(static_cast<int>(dtype)), "1 (bfloat16), 2 (float16)");
  }
  check_range("n", n, 1, 1 << 28);
  check_range("k", k, kBoxColumns, 1 << 24);
  if (k % 8 != 0) refuse("k", std::to_string(k), "multiples of 8");
  if (silu_mul && n % 2 != 0) refuse("n with silu_mul", std::to_string(n), "even numbers");
  if (!is_aligned(data, 16)) throw std::invalid_argument("w: must be 16-byte aligned");
  SkinnyGemmWeight weight;
  weight.data = data;
  weight.n = n;
  weight.k = k;
  weight.dtype = dtype;
  weight.silu_mul = silu_mul;
  const CUtensorMap map = make_tensor_map(dtype, data, n, k, k, kBoxRows);
  static_assert(sizeof(map) == sizeof(weight.tensor_map));
  std::memcpy(weight.tensor_map, &map, sizeof(map));
  return weight;
}

void launch_skinny_gemm(const SkinnyGemmWeight& w, const SkinnyGemmParams& p, cudaStream_t stream) {
  check_range("num_rows", p.num_rows, 0, kSkinnyGemmMaxRows);
  if (p.num_rows == 0) return;
  check_x(w, p);
  const int64_t n_out = w.silu_mul ? w.n / 2 : w.n;
  check_range("stride_out", p.stride_out, p.num_rows == 1 ? 0 : n_out, INT64_MAX);

  Cut cut = choose_cut(w);
  const SkinnyGemmTuning& tuning = p.tuning;
  if (tuning.cluster > 0) cut.cluster = tuning.cluster;
  if (tuning.tile_rows > 0) cut.tile_rows = tuning.tile_rows;
  if (w.silu_mul) cut.tile_rows = 128;
  if (cut.cluster < 1 || cut.cluster > 8 || (cut.cluster & (cut.cluster - 1)) != 0) {
    refuse("tuning.cluster", std::to_string(cut.cluster), "1, 2, 4, 8");
  }
  if (cut.tile_rows != 64 && cut.tile_rows != 128) {
    refuse("tuning.tile_rows", std::to_string(cut.tile_rows), "64, 128");
  }
  const int padded_rows = p.num_rows <= 8 ? 8 : p.num_rows <= 16 ? 16 : p.num_rows <= 32 ? 32 : 64;

  KernelArgs args;
  std::memcpy(&args.weight, w.tensor_map, sizeof(args.weight));
  const bool gathers = p.rows != nullptr;
  args.x = make_tensor_map(w.dtype, p.x, gathers ? p.num_x_rows : p.num_rows, w.k, std::max(p.stride_x, w.k),
                           gathers ? 1 : padded_rows);
  args.num_rows = p.num_rows;
  args.n_out = static_cast<int32_t>(n_out);
  args.num_tiles = num_tiles(w, cut.tile_rows);
  const int64_t step = cut.tile_rows == 64 ? 2 * kBoxColumns : kBoxColumns;
  args.num_steps = static_cast<int32_t>((w.k + step - 1) / step);
  constexpr int32_t kTrigger = 6;  // the next kernel's blocks need about as long to come as these loads
  args.trigger = tuning.trigger >= 0 ? tuning.trigger : kTrigger;
  args.prefetch = tuning.prefetch >= 0 ? tuning.prefetch : 0;  // measured: more than the ring costs time
  args.silu_mul = w.silu_mul;
  args.is_wide = n_out % 4 == 0 && p.stride_out % 4 == 0 && is_aligned(p.out, 8);
  args.rows = p.rows;
  args.bias = p.bias;
  args.out = p.out;
  args.stride_out = p.stride_out;

  while (cut.cluster > args.num_steps) cut.cluster /= 2;
  int clusters = std::min(args.num_tiles, num_clusters(cut.cluster));
  if (tuning.num_blocks > 0) clusters = std::max(1, std::min(clusters, tuning.num_blocks / cut.cluster));
  LaunchConfig config;
  config.grid = clusters * cut.cluster;
  config.cluster = cut.cluster;
  config.overlaps = p.overlaps;
  config.stream = stream;
  if (w.dtype == DType::kBFloat16) {
    gemm::launch_kernel<__nv_bfloat16>(padded_rows, cut.tile_rows, config, args);
  } else {
    gemm::launch_kernel<__half>(padded_rows, cut.tile_rows, config, args);
  }
}

}  // namespace quire::cuda
