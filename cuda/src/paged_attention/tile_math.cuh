// What the kernels share: their arguments, where keys lie, copying 16 of them into shared memory; and for
// prompts one step of the online softmax for 16 rows of a warp, and adding up the pieces of a cut item.
//
// Softmax in base 2: scores are multiplied by softmax_scale * log2(e) and maxima are of these.
#pragma once

#include "common/mma.cuh"
#include "plan.cuh"

namespace quire::cuda::attention {

constexpr int kWarps = 4;
constexpr int kBlockThreads = 32 * kWarps;
constexpr int32_t kNoWindow = 1 << 30;
constexpr float kMinusInf = -__builtin_huge_valf();
constexpr float kLog2E = 1.44269504f;

// A kernel's arguments: Params with what the launch derives from it.
struct KernelArgs {
  PagedAttentionParams p;
  Work work;
  int32_t group;
  int32_t block_shift;   // log2(block_size)
  int32_t block_units;   // stride_block in units of 8 slots
  float scale_log2;      // softmax_scale * k_scale * log2(e): products times this are base-2 scores
  float cap_scale;       // soft_cap given: products times this are 2 * score / soft_cap, in base 2
  float cap_log2;        // soft_cap * log2(e)
  float value_scale;     // v_scale
  bool follows_prefill;  // decode: the previous kernel is that of this layer's prompts
};

// A product of query and key as a score in base 2.
__device__ inline float scaled_score(const KernelArgs& a, float product) {
  if (a.p.soft_cap == 0) return product * a.scale_log2;
  // tanh(x) = 1 - 2 / (exp(2x) + 1), also where the exponential overflows.
  return a.cap_log2 * (1.0f - __fdividef(2.0f, exp2_fast(product * a.cap_scale) + 1.0f));
}

// The sum of a row's probabilities relative to max, with its head's sink.
__device__ inline float with_sink(const KernelArgs& a, float sum, float max, int32_t kv_head, int32_t row) {
  if (a.p.sinks == nullptr) return sum;
  const float sink = __ldg(a.p.sinks + kv_head * a.group + row % a.group);
  return sum + exp2_fast(fmaf(sink, kLog2E, -max));
}

// Rows of shared memory are 16 bytes longer than a key, so that 8 rows of an ldmatrix lie in distinct banks
// (their distance is an odd number of 16-byte columns).
template <int kHeadDim>
constexpr int kRowBytes = kHeadDim * 2 + 16;

// The head size in memory; where kIsPadded, kHeadDim is the next larger one that kernels compute with.
template <int kHeadDim, bool kIsPadded>
__device__ inline int32_t memory_dim(const KernelArgs& a) {
  return kIsPadded ? a.p.config.head_dim : kHeadDim;
}

// Copies keys [first_key, first_key + 16) of one block, and their values, into rows of shared memory. Rows of
// keys from num_keys on are zeros: unused slots may hold NaN, and 0 * NaN would reach the output. So is what
// pads a row.
template <class KV, int kHeadDim, bool kIsPadded = false, int kPitch = kRowBytes<kHeadDim>>
__device__ inline void copy_16_keys(const KernelArgs& a, int32_t block_id, int32_t kv_head, int32_t first_key,
                                    int32_t num_keys, uint32_t to_keys, uint32_t to_values) {
  constexpr int kSize = 16 / sizeof(KV);
  constexpr int kColumns = kHeadDim / kSize;  // of 16 bytes
  static_assert(16 * kColumns % 32 == 0);
  const int lane = threadIdx.x % 32;
  const int32_t dim = memory_dim<kHeadDim, kIsPadded>(a);
  const int64_t stride_slot = static_cast<int64_t>(a.p.config.num_kv_heads) * dim;
  const int32_t offset = first_key & ((1 << a.block_shift) - 1);
  const int64_t base = block_id * a.p.stride_block + offset * stride_slot + kv_head * dim;
  const auto copy = [&](const void* cache, uint32_t to) {
#pragma unroll
    for (int i = 0; i < 16 * kColumns / 32; ++i) {
      const int row = (lane + 32 * i) / kColumns;
      const int column = (lane + 32 * i) % kColumns;
      const bool is_there = !kIsPadded || column * kSize < dim;
      const int64_t from = base + row * stride_slot + (is_there ? column * kSize : 0);
      copy_async(to + row * kPitch + column * 16, static_cast<const KV*>(cache) + from,
                 is_there && first_key + row < num_keys);
    }
  };
  copy(a.p.key_cache, to_keys);
  copy(a.p.value_cache, to_values);
}

// The block that holds keys [first_key, first_key + 16); block 0 past the end, where nothing is read.
__device__ inline int32_t block_of_key(const KernelArgs& a, const Tile& tile, int32_t first_key) {
  if (first_key >= tile.num_keys) return 0;
  return __ldg(a.p.block_tables + tile.block_table_row * a.p.stride_block_table +
               (first_key >> a.block_shift));
}

// Running softmax of the two rows (g and g + 8) that a lane has of a 16-row fragment.
struct SoftmaxState {
  float max[2];  // of the whole row
  float sum[2];  // of this lane's columns
};

// scores[kTiles] are the raw products of 16 rows with 8 * kTiles keys from first_key on; becomes the
// probabilities relative to the new maximum. Rescales the accumulators. last_key: of each row, the last key
// that it sees. window: kNoWindow for none.
template <int kTiles, int kOutTiles>
__device__ inline void softmax_step(float (&scores)[kTiles][4], float (&acc)[kOutTiles][4],
                                    SoftmaxState& state, float scale_log2, bool is_masked, int32_t first_key,
                                    const int32_t (&last_key)[2], int32_t window) {
  const int t = threadIdx.x % 4;
  if (is_masked) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t key = first_key + n * 8 + 2 * t + (i & 1);
        if (key > last_key[i / 2] || key <= last_key[i / 2] - window)
          scores[n][i] = kMinusInf;  // a select: the score may be NaN
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = scores[0][2 * h];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      largest = fmaxf(largest, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
    }
    const float new_max = fmaxf(state.max[h], max_of_row(largest) * scale_log2);
    // A row that has seen no key yet: exp2(-inf - 0) = 0 for all.
    const float shift = new_max == kMinusInf ? 0.0f : new_max;
    const float correction = exp2_fast(state.max[h] - shift);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 2 * h; i < 2 * h + 2; ++i) {
        scores[n][i] = exp2_fast(fmaf(scores[n][i], scale_log2, -shift));
        sum += scores[n][i];
      }
    }
    state.sum[h] = state.sum[h] * correction + sum;
    state.max[h] = new_max;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n) {
      acc[n][2 * h] *= correction;
      acc[n][2 * h + 1] *= correction;
    }
  }
}

// Probabilities of 16 rows and 16 keys as the A operand of the product with the values.
template <class T>
__device__ inline void probabilities_as_a(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = Element<T>::pack(left[0], left[1]);
  a[1] = Element<T>::pack(left[2], left[3]);
  a[2] = Element<T>::pack(right[0], right[1]);
  a[3] = Element<T>::pack(right[2], right[3]);
}

// Called by the whole block once the slots of its pieces (num_pieces of them) are written. True for a piece
// whose item has no more missing pieces; the block then sees every piece's slot.
template <int kMaxPieces>
__device__ inline void count_pieces(const Work& work, const Slots (&slots)[kMaxPieces], int num_pieces,
                                    bool (&is_last)[kMaxPieces]) {
  __shared__ bool shared_is_last[kMaxPieces];
  __threadfence();
  __syncthreads();  // every thread's part of the slots is visible before the count
  if (threadIdx.x < num_pieces) {
    const bool is_first = threadIdx.x == 0;
    int32_t* const counter =
        work.num_finished + (is_first ? slots[0].counter : slots[kMaxPieces - 1].counter);
    const int32_t missing = is_first ? slots[0].num_pieces : slots[kMaxPieces - 1].num_pieces;
    const bool last = atomicAdd(counter, 1) == missing - 1;
    if (last) *counter = 0;  // for the next layer
    shared_is_last[threadIdx.x] = last;
  }
  __syncthreads();
  __threadfence();
#pragma unroll
  for (int i = 0; i < kMaxPieces; ++i) is_last[i] = i < num_pieces && shared_is_last[i];
}

template <class T>
__device__ inline T* out_row(const KernelArgs& a, const Tile& tile, int32_t kv_head, int32_t row,
                             int head_dim) {
  const int64_t token = tile.first_token + row / a.group;
  const int32_t head = kv_head * a.group + row % a.group;
  return static_cast<T*>(a.p.out) + token * a.p.stride_out_token + static_cast<int64_t>(head) * head_dim;
}

// out = sum over pieces, in key order, of 2^(max_j - max) O_j / sum over pieces of 2^(max_j - max) sum_j
// Called by the whole block.
template <class T, int kHeadDim, bool kIsPadded, int kRows>
__device__ inline void merge_pieces(const KernelArgs& a, const Tile& tile, int32_t kv_head,
                                    const Slots& slots) {
  __shared__ float2 merged[kRows];  // maximum, value_scale / sum
  constexpr int kColumns = kHeadDim / 4;
  constexpr int kAtOnce = 4;  // values of one piece on their way at a time
  const auto slot_row = [&](int piece, int row) {
    return static_cast<int64_t>(slots.slot(piece)) * kRows + row;
  };
  const auto state_of = [&](int piece, int row) {
    return __ldcg(reinterpret_cast<const float2*>(a.work.partial_state) + slot_row(piece, row));
  };
  const int state_row = threadIdx.x;
  static_assert(kRows <= kBlockThreads);
  if (state_row < tile.num_rows) {
    float2 all = make_float2(kMinusInf, 0);
#pragma unroll 4
    for (int j = 0; j < slots.num_pieces; ++j) all.x = fmaxf(all.x, state_of(j, state_row).x);
#pragma unroll 4
    for (int j = 0; j < slots.num_pieces; ++j) {
      const float2 one = state_of(j, state_row);
      all.y += exp2_fast(one.x - all.x) * one.y;
    }
    merged[state_row] = make_float2(all.x, a.value_scale / with_sink(a, all.y, all.x, kv_head, state_row));
  }
  __syncthreads();  // merged
  const int num_values = tile.num_rows * kColumns;
  for (int begin = threadIdx.x; begin < num_values; begin += kAtOnce * kBlockThreads) {
    float4 out[kAtOnce] = {};
#pragma unroll 2
    for (int j = 0; j < slots.num_pieces; ++j) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = begin + u * kBlockThreads;
        if (i >= num_values) break;
        const int row = i / kColumns;
        const float weight = exp2_fast(state_of(j, row).x - merged[row].x);
        const float4 x = __ldcg(reinterpret_cast<const float4*>(
            a.work.partial_out + slot_row(j, row) * kHeadDim + i % kColumns * 4));
        out[u].x += weight * x.x;
        out[u].y += weight * x.y;
        out[u].z += weight * x.z;
        out[u].w += weight * x.w;
      }
    }
#pragma unroll
    for (int u = 0; u < kAtOnce; ++u) {
      const int i = begin + u * kBlockThreads;
      if (i >= num_values) break;
      const int row = i / kColumns;
      const float inverse = merged[row].y;
      uint2 packed;
      packed.x = Element<T>::pack(out[u].x * inverse, out[u].y * inverse);
      packed.y = Element<T>::pack(out[u].z * inverse, out[u].w * inverse);
      const int32_t dim = memory_dim<kHeadDim, kIsPadded>(a), column = i % kColumns * 4;
      if (kIsPadded && column >= dim) continue;
      *reinterpret_cast<uint2*>(out_row<T>(a, tile, kv_head, row, dim) + column) = packed;
    }
  }
  __syncthreads();  // merged may be written again
}

}  // namespace quire::cuda::attention
