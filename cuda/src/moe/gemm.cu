// The experts' GEMMs: for each tile of up to kTokens rows of one expert, and each 128 rows of the expert's
// weight, one item of work.
//
// Grid: as many blocks as fit at once; each takes items blockIdx.x, blockIdx.x + gridDim.x, ... Tiles of one
// expert follow one another, so that its weight comes from the L2 cache for all but the first. Block: 4
// warps. The weight is the left operand of the mma, 16 of its rows at a time, so that few tokens waste
// little: warp w has rows 16 w of both halves of the item's rows. Where gated the halves are of gate and of
// up, and a thread has both for the same outputs; else they follow each other.
//
// Shared memory: a ring of kStages stages, 64 of k each: [weight rows][128 bytes], [tokens][128 bytes], whose
// pieces of 16 bytes lie at piece ^ row % 8, so that the 8 rows of an ldmatrix lie in distinct banks. At an
// item's end the outputs pass through it, to be stored 16 bytes at a time.
#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/mma.cuh"
#include "common/vec.cuh"
#include "layers/activation.cuh"
#include "quire/cuda/moe.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWeightRows = 128;  // of an item
constexpr int kHalf = kWeightRows / 2;
constexpr int kDepth = 64;  // of a stage
constexpr int kRowBytes = kDepth * 2;
constexpr int kBlocksPerSm = 2;

template <int kTokens>
struct Shape {
  static constexpr int kStages = kTokens == 16 ? 6 : 4;
  static constexpr int kStageBytes = (kWeightRows + kTokens) * kRowBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kOutPitch = kWeightRows + 8;  // elements
  static_assert(kTokens * kOutPitch * 2 <= kSharedBytes);
  static_assert((kSharedBytes + 1024) * kBlocksPerSm <= 228 * 1024);
};

__device__ inline uint32_t place(int row, int piece) { return row * kRowBytes + (piece ^ row % 8) * 16; }

// Where one item of work reads and writes.
struct Item {
  int4 tile;             // expert, first row, number of rows
  int32_t first_column;  // of the output

  template <bool kGated>
  __device__ static Item at(const MoeGemmParams& p, int32_t index, int32_t num_tiles) {
    const int4 tile = __ldcg(reinterpret_cast<const int4*>(p.tiles) + index % num_tiles);
    return {tile, index / num_tiles * (kGated ? kHalf : kWeightRows)};
  }
};

// A thread's copies: pieces threadIdx.x % 8 of rows threadIdx.x / 8 + 16 i.
template <class T, int kTokens, bool kGated>
struct Loader {
  static constexpr int kTokenCopies = kTokens / 16;
  const T* weight;  // of the first half's first row that this thread copies, at its piece
  const T* second_half;
  const T* x[kTokenCopies];
  int32_t num_rows, num_second_rows;  // of the weight from the thread's first row on, in either half
  int32_t num_tokens;                 // from the thread's first row on
  int32_t num_left;                   // of k, from the thread's piece on

  __device__ Loader(const MoeGemmParams& p, const Item& item) {
    const int row = threadIdx.x / 8, piece = threadIdx.x % 8;
    const int32_t n_out = kGated ? p.n / 2 : p.n;
    const T* const all = static_cast<const T*>(p.weight) + static_cast<int64_t>(item.tile.x) * p.n * p.k;
    const int64_t first = item.first_column + row;
    const int64_t to_second = kGated ? n_out : kHalf;
    weight = all + first * p.k + piece * 8;
    second_half = weight + to_second * p.k;
    num_rows = n_out - static_cast<int32_t>(first);
    num_second_rows = kGated ? num_rows : num_rows - kHalf;
    num_tokens = item.tile.z - row;
    num_left = p.k - piece * 8;
#pragma unroll
    for (int i = 0; i < kTokenCopies; ++i) {
      const int32_t at = item.tile.y + min(row + 16 * i, item.tile.z - 1);
      const int64_t from = p.entry_of_row == nullptr ? at : __ldcg(p.entry_of_row + at) / p.top_k;
      x[i] = static_cast<const T*>(p.x) + from * p.stride_x + piece * 8;
    }
  }

  // Copies the next 64 of k to a stage. What is not there becomes zeros, copied from an address that is.
  __device__ void load(const MoeGemmParams& p, uint32_t stage) {
    const int row = threadIdx.x / 8, piece = threadIdx.x % 8;
    const bool is_inside = num_left > 0;
    const auto copy = [&](int to_row, const T* from, bool is_valid) {
      copy_async(stage + place(to_row, piece), is_valid ? from : p.weight, is_valid);
    };
#pragma unroll
    for (int i = 0; i < kHalf / 16; ++i) {
      const int64_t offset = static_cast<int64_t>(16 * i) * p.k;
      copy(row + 16 * i, weight + offset, is_inside && 16 * i < num_rows);
      copy(kHalf + row + 16 * i, second_half + offset, is_inside && 16 * i < num_second_rows);
    }
#pragma unroll
    for (int i = 0; i < kTokenCopies; ++i) {
      copy(kWeightRows + row + 16 * i, x[i], is_inside && 16 * i < num_tokens);
      x[i] += kDepth;
    }
    weight += kDepth;
    second_half += kDepth;
    num_left -= kDepth;
  }
};

template <class T, int kTokens>
__device__ inline void multiply_stage(uint32_t stage, float (&acc)[2][kTokens / 8][4]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int weight_row = 16 * warp + lane % 16, token_row = kWeightRows + lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step) {
    uint32_t w[2][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      load_matrices(w[half], stage + place(half * kHalf + weight_row, 2 * step + lane / 16));
    }
#pragma unroll
    for (int j = 0; j < kTokens / 16; ++j) {
      uint32_t x[4];
      load_matrices(x, stage + place(token_row + 16 * j, 2 * step + lane / 8 % 2));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Element<T>::mma(acc[half][2 * j], w[half], x[0], x[1]);
        Element<T>::mma(acc[half][2 * j + 1], w[half], x[2], x[3]);
      }
    }
  }
}

// The sums, with bias and activation, through shared memory to the output.
template <class T, int kTokens, bool kGated>
__device__ inline void store_item(const MoeGemmParams& p, const Item& item, T* shared,
                                  const float (&acc)[2][kTokens / 8][4]) {
  constexpr int kPitch = Shape<kTokens>::kOutPitch;
  constexpr int kColumns = kGated ? kHalf : kWeightRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int32_t n_out = kGated ? p.n / 2 : p.n;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int column = 16 * warp + lane / 4 + 8 * h;  // of the first half
    float bias[2] = {0, 0};
    if (p.bias != nullptr) {
      const T* const from = static_cast<const T*>(p.bias) + static_cast<int64_t>(item.tile.x) * p.n;
      const int32_t first = item.first_column + column, second = first + (kGated ? n_out : kHalf);
      if (first < n_out) bias[0] = to_float(from[first]);
      if (second < p.n) bias[1] = to_float(from[second]);
    }
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        T* const to = shared + (8 * j + lane % 4 * 2 + i) * kPitch + column;
        Vec<T, 1> y[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) y[half][0] = from_float<T>(acc[half][j][2 * h + i] + bias[half]);
        if constexpr (kGated) {
          *to = gated(p.activation, y[0], y[1])[0];
        } else {
          to[0] = y[0][0];
          to[kHalf] = y[1][0];
        }
      }
    }
  }
  __syncthreads();  // all outputs
  constexpr int kPieces = kColumns / 8;
  for (int i = threadIdx.x; i < item.tile.z * kPieces; i += kThreads) {
    const int token = i / kPieces, column = i % kPieces * 8;
    if (item.first_column + column >= n_out) continue;
    T* const to = static_cast<T*>(p.out) + static_cast<int64_t>(item.tile.y + token) * n_out +
                  item.first_column + column;
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(shared + token * kPitch + column);
  }
  __syncthreads();  // the ring may be written again
}

template <class T, int kTokens, bool kGated>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm) moe_gemm_kernel(const MoeGemmParams p) {
  using S = Shape<kTokens>;
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t ring = shared_address(shared);
  launch_dependents();
  wait_for_dependencies();
  const int32_t n_out = kGated ? p.n / 2 : p.n;
  constexpr int kColumns = kGated ? kHalf : kWeightRows;
  const int32_t num_tiles = __ldcg(p.num_tiles);
  const int32_t num_items = num_tiles * ((n_out + kColumns - 1) / kColumns);
  const int32_t num_steps = (p.k + kDepth - 1) / kDepth;
  for (int32_t index = blockIdx.x; index < num_items; index += gridDim.x) {
    const Item item = Item::template at<kGated>(p, index, num_tiles);
    Loader<T, kTokens, kGated> loader(p, item);
    float acc[2][kTokens / 8][4] = {};
    for (int step = 0; step < S::kStages - 1; ++step) {
      if (step < num_steps) loader.load(p, ring + step * S::kStageBytes);
      commit_copies();  // also when empty, so that the count of groups stays true
    }
    int stage = 0, next_stage = S::kStages - 1;
    for (int32_t step = 0; step < num_steps; ++step) {
      wait_copies<S::kStages - 2>();
      __syncthreads();  // this stage is there, and the one before it is read
      if (step + S::kStages - 1 < num_steps) loader.load(p, ring + next_stage * S::kStageBytes);
      commit_copies();
      multiply_stage<T, kTokens>(ring + stage * S::kStageBytes, acc);
      stage = stage + 1 == S::kStages ? 0 : stage + 1;
      next_stage = next_stage + 1 == S::kStages ? 0 : next_stage + 1;
    }
    wait_copies<0>();
    __syncthreads();  // the last stage is read
    store_item<T, kTokens, kGated>(p, item, reinterpret_cast<T*>(shared), acc);
  }
}

template <class T>
auto kernel_for(const MoeGemmParams& p) {
  if (p.tile_rows == 16) return p.is_gated ? moe_gemm_kernel<T, 16, true> : moe_gemm_kernel<T, 16, false>;
  return p.is_gated ? moe_gemm_kernel<T, 64, true> : moe_gemm_kernel<T, 64, false>;
}

}  // namespace

void launch_moe_gemm(const MoeGemmParams& p, cudaStream_t stream) {
  if (p.tile_rows != 16 && p.tile_rows != 64) refuse("tile_rows", std::to_string(p.tile_rows), "16, 64");
  check_range("num_sms", p.num_sms, 1, 1 << 16);
  check_range("top_k", p.top_k, 1, 1 << 16);
  check_range("activation", static_cast<int>(p.activation), 0, static_cast<int>(Activation::kSwigluOai));
  const int unit = p.is_gated ? 16 : 8;
  if (p.n < unit || p.n % unit != 0) refuse("n", std::to_string(p.n), "multiples of " + std::to_string(unit));
  if (p.k < 8 || p.k % 8 != 0) refuse("k", std::to_string(p.k), "multiples of 8");
  if (p.stride_x % 8 != 0) refuse("stride_x", std::to_string(p.stride_x), "multiples of 8");
  for (const void* pointer :
       {p.x, p.weight, static_cast<const void*>(p.out), static_cast<const void*>(p.tiles)}) {
    if (!is_aligned(pointer, 16)) refuse("x, weight, out, tiles", "another address", "multiples of 16 bytes");
  }
  LaunchConfig config;
  config.grid = kBlocksPerSm * p.num_sms;
  config.block = kThreads;
  config.shared_bytes = p.tile_rows == 16 ? Shape<16>::kSharedBytes : Shape<64>::kSharedBytes;
  config.overlaps = true;
  config.stream = stream;
  switch (p.dtype) {
    case DType::kBFloat16:
      return launch("moe_gemm", kernel_for<__nv_bfloat16>(p), config, p);
    case DType::kFloat16:
      return launch("moe_gemm", kernel_for<__half>(p), config, p);
    default:
      refuse("dtype", std::to_string(static_cast<int>(p.dtype)), "1 (bfloat16), 2 (float16)");
  }
}

}  // namespace quire::cuda
