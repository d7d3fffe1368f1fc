// What a warp of the decode kernel does with 16 keys: copies them, multiplies them with the query, and their
// values with the probabilities.
//
// Keys stand in the rows of the products and the packed rows of queries in the columns, 8 to a tile, so that
// the usual 4 heads pad 8 columns and not 16 rows: scores^T = K Q^T, out^T = V^T P^T. Of a lane (g, t), lane
// = 4 g + t, scores are of keys g and g + 8 and of rows 2t and 2t + 1; accumulators of rows 2t and 2t + 1 and
// of two dimensions per tile of 16, see dimension_of().
//
// A cache of 8-bit floats is multiplied as float16, into which every e4m3 converts exactly. Keys are read as
// runs of 8 bytes per lane: the order of the dimensions within a product is free, if the query has the same.
// Values are transposed by pairs of dimensions, which are then picked apart.
#pragma once

#include <type_traits>

#include "float8.cuh"
#include "tile_math.cuh"

namespace quire::cuda::attention {

// kWidth: dimensions of the folded heads together.
template <class T, class KV, int kWidth>
struct DecodeTypes {
  static constexpr bool kIsFloat8 = std::is_same_v<KV, Float8>;
  using Product = std::conditional_t<kIsFloat8, __half, T>;  // that the tensor cores multiply
  static constexpr int kElementBytes = static_cast<int>(sizeof(KV));
  static constexpr int kKeyBytes = kWidth * kElementBytes;
  // Rows of shared memory: 8 rows of ldmatrix in distinct banks, and 4 rows of 32 bytes for 8-bit keys.
  static constexpr int kValuePitch = kKeyBytes + 16;
  static constexpr int kKeyPitch = !kIsFloat8         ? kKeyBytes + 16
                                   : kWidth % 64 == 0 ? kKeyBytes + 32
                                                      : kKeyBytes;
  static constexpr int kValuesAt = 16 * kKeyPitch;  // within a stage
  static constexpr int kStageBytes = 16 * (kKeyPitch + kValuePitch);
  static_assert(kValuePitch / 16 % 2 == 1 && kKeyPitch % 16 == 0);
};

// 16 keys from `keys` on and their values, rows stride_slot bytes apart, into a stage. Rows from num_valid on
// become zeros: unused slots may hold NaN, and 0 * NaN would reach the output.
template <class Types>
__device__ inline void copy_keys(const unsigned char* keys, const unsigned char* values, int64_t stride_slot,
                                 int32_t num_valid, uint32_t stage) {
  constexpr int kColumns = Types::kKeyBytes / 16;
  constexpr int kCopies = 16 * kColumns / 32;
  static_assert(16 * kColumns % 32 == 0);
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int is_value = 0; is_value < 2; ++is_value) {
    const unsigned char* const from = is_value ? values : keys;
    const uint32_t to = stage + (is_value ? Types::kValuesAt : 0);
    constexpr int kPitches[2] = {Types::kKeyPitch, Types::kValuePitch};
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int row = (lane + 32 * i) / kColumns, column = (lane + 32 * i) % kColumns;
      copy_async(to + row * kPitches[is_value] + column * 16, from + row * stride_slot + column * 16,
                 row < num_valid);
    }
  }
}

__device__ inline uint32_t transposed(uint32_t matrix) {
  uint32_t x;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(x) : "r"(matrix));
  return x;
}

// The query's rows as the right operand.
template <class Types, class T, int kHeadDim, int kFold, int kTiles>
__device__ inline void load_query(const KernelArgs& a, const Tile& tile, int32_t kv_head,
                                  uint32_t (&query)[kTiles][kHeadDim * kFold / 16][2]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    const int32_t row = 8 * m + g;
    const bool is_valid = row < tile.num_rows;
    const int64_t token = tile.first_token + row / a.group;
    const int64_t head = kv_head * a.group + row % a.group;
    const int folded = row % a.group / (a.group / kFold);  // which of the folded heads
    const T* const from = static_cast<const T*>(a.p.query) + token * a.p.stride_query_token + head * kHeadDim;
#pragma unroll
    for (int k = 0; k < kHeadDim * kFold / 16; ++k) {
      const bool is_own = is_valid && folded == k * 16 / kHeadDim;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int d = Types::kIsFloat8 ? k / 2 * 32 + 8 * t + k % 2 * 4 + 2 * h : k * 16 + 2 * t + 8 * h;
        uint32_t pair = is_own ? *reinterpret_cast<const uint32_t*>(from + d % kHeadDim) : 0;
        if constexpr (Types::kIsFloat8 && !std::is_same_v<T, __half>) {
          const float2 x = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
          constexpr float kLargest = 65504;
          pair = Element<__half>::pack(fminf(fmaxf(x.x, -kLargest), kLargest),
                                       fminf(fmaxf(x.y, -kLargest), kLargest));
        }
        query[m][k][h] = pair;
      }
    }
  }
}

// scores[m] = raw products of the stage's keys with rows [8 m, 8 m + 8).
template <class Types, int kWidth, int kTiles>
__device__ inline void multiply_keys(uint32_t stage, const uint32_t (&query)[kTiles][kWidth / 16][2],
                                     float (&scores)[kTiles][4]) {
  using Product = typename Types::Product;
  const int lane = threadIdx.x % 32;
  if constexpr (Types::kIsFloat8) {
    const uint32_t from = stage + lane / 4 * Types::kKeyPitch + lane % 4 * 8;
#pragma unroll
    for (int k = 0; k < kWidth / 16; k += 2) {
      uint32_t low[2], high[2];  // of keys g and g + 8
      load_shared(low, from + k * 16);
      load_shared(high, from + 8 * Types::kKeyPitch + k * 16);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t keys[4] = {half2_of(low[h]), half2_of(high[h]), half2_of(low[h] >> 16),
                                  half2_of(high[h] >> 16)};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          Element<Product>::mma(scores[m], keys, query[m][k + h][0], query[m][k + h][1]);
        }
      }
    }
  } else {
    const uint32_t from = stage + lane % 16 * Types::kKeyPitch + lane / 16 * 16;
#pragma unroll
    for (int k = 0; k < kWidth / 16; ++k) {
      uint32_t keys[4];
      load_matrices(keys, from + k * 32);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        Element<Product>::mma(scores[m], keys, query[m][k][0], query[m][k][1]);
      }
    }
  }
}

// acc[n][m] += values * probabilities, with the latter as right operands.
template <class Types, int kWidth, int kTiles>
__device__ inline void multiply_values(uint32_t stage, const uint32_t (&probabilities)[kTiles][2],
                                       float (&acc)[kWidth / 16][kTiles][4]) {
  using Product = typename Types::Product;
  const int lane = threadIdx.x % 32;
  if constexpr (Types::kIsFloat8) {
    const uint32_t from = stage + Types::kValuesAt + lane % 16 * Types::kValuePitch + lane / 16 * 16;
#pragma unroll
    for (int n = 0; n < kWidth / 16; n += 2) {
      uint32_t pairs[4];  // [16 dimensions][keys 0-7, keys 8-15], bytes: key 2t, of 2 dimensions, key 2t + 1
      load_matrices_transposed(pairs, from + n * 16);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint32_t left = __byte_perm(pairs[2 * h], 0, 0x3120);
        const uint32_t right = __byte_perm(pairs[2 * h + 1], 0, 0x3120);
        const uint32_t values[4] = {half2_of(left), half2_of(left >> 16), half2_of(right),
                                    half2_of(right >> 16)};
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          Element<Product>::mma(acc[n + h][m], values, probabilities[m][0], probabilities[m][1]);
        }
      }
    }
  } else {
    const uint32_t from =
        stage + Types::kValuesAt + (lane / 16 * 8 + lane % 8) * Types::kValuePitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int n = 0; n < kWidth / 16; ++n) {
      uint32_t values[4];
      load_matrices_transposed(values, from + n * 32);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        Element<Product>::mma(acc[n][m], values, probabilities[m][0], probabilities[m][1]);
      }
    }
  }
}

// The dimension that a lane's accumulators acc[n][m][2 h] and [2 h + 1] are of.
template <class Types>
__device__ inline int dimension_of(int n, int h) {
  const int g = threadIdx.x % 32 / 4;
  return Types::kIsFloat8 ? 16 * n + 2 * g + h : 16 * n + g + 8 * h;
}

// Online softmax of a warp's rows. The maximum that probabilities are relative to is raised only when a score
// passes it by more than kSlack, so most steps need no exchange between lanes; a probability is at most
// 2^kSlack, which float16 and the sums hold.
template <int kTiles>
struct DecodeSoftmax {
  static constexpr float kSlack = 8;
  float max[kTiles][2];  // of rows 2t, 2t + 1; base 2
  float sum[kTiles][2];  // of this lane's keys

  __device__ DecodeSoftmax() {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        max[m][j] = kMinusInf;
        sum[m][j] = 0;
      }
    }
  }

  // scores (base 2, masked) become probabilities; the accumulators follow the maximum.
  template <int kOutTiles>
  __device__ void step(float (&scores)[kTiles][4], float (&acc)[kOutTiles][kTiles][4]) {
    bool passes = false;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        passes = passes || fmaxf(scores[m][j], scores[m][j + 2]) > max[m][j] + kSlack;
      }
    }
    if (__any_sync(~0u, passes)) raise(scores, acc);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float shift = max[m][j] == kMinusInf ? 0.0f : max[m][j];
        scores[m][j] = exp2_fast(scores[m][j] - shift);
        scores[m][j + 2] = exp2_fast(scores[m][j + 2] - shift);
        sum[m][j] += scores[m][j] + scores[m][j + 2];
      }
    }
  }

  template <int kOutTiles>
  __device__ void raise(const float (&scores)[kTiles][4], float (&acc)[kOutTiles][kTiles][4]) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float largest = fmaxf(scores[m][j], scores[m][j + 2]);
#pragma unroll
        for (int d = 4; d < 32; d *= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
        largest = fmaxf(largest, max[m][j]);
        const float correction = exp2_fast(max[m][j] - (largest == kMinusInf ? 0.0f : largest));
        max[m][j] = largest;
        sum[m][j] *= correction;
#pragma unroll
        for (int n = 0; n < kOutTiles; ++n) {
          acc[n][m][j] *= correction;
          acc[n][m][j + 2] *= correction;
        }
      }
    }
  }

  // Sums over all lanes.
  __device__ void finish() {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int d = 4; d < 32; d *= 2) sum[m][j] += __shfl_xor_sync(~0u, sum[m][j], d);
      }
    }
  }
};

}  // namespace quire::cuda::attention
