// What a consumer of the wgmma kernel does with its rows: masks, softmax, the output, and adding up pieces.
#pragma once

#include "copy_engine.cuh"
#include "prefill_shape.cuh"
#include "tile_math.cuh"

namespace quire::cuda::attention {

// One step of the online softmax for the lane's two rows of raw scores, which become probabilities relative
// to the new maximum. correction: what the accumulators have to be multiplied by.
template <int kCount>
__device__ inline void softmax_of(float (&scores)[kCount], SoftmaxState& state, float scale_log2,
                                  float (&correction)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest[2] = {scores[2 * h], scores[2 * h + 4]};
#pragma unroll
    for (int n = 0; n < kCount / 4; ++n) {
      largest[n % 2] = fmaxf(largest[n % 2], fmaxf(scores[4 * n + 2 * h], scores[4 * n + 2 * h + 1]));
    }
    const float new_max = fmaxf(state.max[h], max_of_row(fmaxf(largest[0], largest[1])) * scale_log2);
    // A row that has seen no key yet: exp2(-inf - 0) = 0 for all.
    const float shift = new_max == kMinusInf ? 0.0f : new_max;
    correction[h] = exp2_fast(state.max[h] - shift);
    state.max[h] = new_max;
    float sum[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < kCount / 4; ++n) {
#pragma unroll
      for (int i = 4 * n + 2 * h; i < 4 * n + 2 * h + 2; ++i) {
        scores[i] = exp2_fast(fmaf(scores[i], scale_log2, -shift));
        sum[n % 2] += scores[i];
      }
    }
    state.sum[h] = state.sum[h] * correction[h] + (sum[0] + sum[1]);
  }
}

// Scores of keys that a row does not see: a select, as the score may be NaN.
template <int kCount>
__device__ inline void mask(float (&scores)[kCount], int32_t first_key, const int32_t (&last_key)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int32_t num_seen = last_key[h] + 1 - first_key - 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < kCount / 4; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (8 * n + i >= num_seen) scores[4 * n + 2 * h + i] = kMinusInf;
      }
    }
  }
}

// Scores of keys that are out of a row's window. first_seen: of each row, the first key that it sees.
template <int kCount>
__device__ inline void mask_window(float (&scores)[kCount], int32_t first_key,
                                   const int32_t (&first_seen)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int32_t num_hidden = first_seen[h] - first_key - 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < kCount / 4; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (8 * n + i < num_hidden) scores[4 * n + 2 * h + i] = kMinusInf;
      }
    }
  }
}

// Four words of four lanes (a quad's lane t: word i of column tile i), transposed: lane t has column tile t.
__device__ inline void transpose_in_quad(uint32_t (&w)[4]) {
  const bool is_odd = threadIdx.x & 1, is_high = threadIdx.x & 2;
  const uint32_t x = __shfl_xor_sync(~0u, is_odd ? w[0] : w[1], 1);
  const uint32_t y = __shfl_xor_sync(~0u, is_odd ? w[2] : w[3], 1);
  const uint32_t a0 = is_odd ? x : w[0], a1 = is_odd ? w[1] : x;
  const uint32_t b0 = is_odd ? y : w[2], b1 = is_odd ? w[3] : y;
  const uint32_t c0 = __shfl_xor_sync(~0u, is_high ? a0 : b0, 2);
  const uint32_t c1 = __shfl_xor_sync(~0u, is_high ? a1 : b1, 2);
  w[0] = is_high ? c0 : a0;
  w[1] = is_high ? c1 : a1;
  w[2] = is_high ? b0 : c0;
  w[3] = is_high ? b1 : c1;
}

// A consumer's 64 rows of a piece, to the output or to the piece's slot.
template <class T, int kHeadDim>
__device__ inline void write_group(const KernelArgs& a, const Piece& piece, const Slots& slots,
                                   int32_t group_row, const SoftmaxState& state,
                                   const float (&acc)[kHeadDim / 2]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int32_t row = group_row + threadIdx.x % kGroupThreads / 32 * 16 + g + 8 * h;
    const float sum = sum_of_row(state.sum[h]);
    const bool is_row = row < piece.tile.num_rows;
    if (slots.num_pieces == 1) {
      const float inverse = 1.0f / with_sink(a, sum, state.max[h], piece.kv_head, row);
      T* const to = out_row<T>(a, piece.tile, piece.kv_head, row, kHeadDim) + t * 8;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; n += 4) {
        uint32_t words[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          words[i] =
              Element<T>::pack(acc[4 * (n + i) + 2 * h] * inverse, acc[4 * (n + i) + 2 * h + 1] * inverse);
        }
        transpose_in_quad(words);
        if (is_row)
          *reinterpret_cast<uint4*>(to + n * 8) = make_uint4(words[0], words[1], words[2], words[3]);
      }
    } else if (is_row) {
      const int64_t slot_row = static_cast<int64_t>(slots.mine) * Shape<kHeadDim>::kRows + row;
      float* const to = a.work.partial_out + slot_row * kHeadDim + 2 * t;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(to + n * 8) = make_float2(acc[4 * n + 2 * h], acc[4 * n + 2 * h + 1]);
      }
      if (t == 0) {
        reinterpret_cast<float2*>(a.work.partial_state)[slot_row] = make_float2(state.max[h], sum);
      }
    }
  }
}

// Once a consumer's rows of a cut item's piece are in its slot: counts them, and adds up the item's pieces in
// the order of their keys when none is missing. The consumers count in halves of one counter.
template <class T, int kHeadDim>
__device__ inline void merge_group(const KernelArgs& a, const Piece& piece, const Slots& slots, int consumer,
                                   float2* merged) {
  constexpr int kColumns = kHeadDim / 4;
  constexpr int kAtOnce = 4;
  const int thread = threadIdx.x % kGroupThreads;
  const int32_t group_row = consumer * kGroupRows;
  const int barrier_id = 3 + consumer;
  __threadfence();
  sync_threads(barrier_id, kGroupThreads);  // every thread's part of the slot is visible before the count
  if (thread == 0) {
    int32_t* const counter = a.work.num_finished + slots.counter;
    const int shift = 16 * consumer;
    const bool is_last = (atomicAdd(counter, 1 << shift) >> shift & 0xffff) == slots.num_pieces - 1;
    if (is_last) atomicSub(counter, slots.num_pieces << shift);  // for the next layer
    merged[group_row].x = is_last ? 1.0f : 0.0f;
  }
  sync_threads(barrier_id, kGroupThreads);
  const bool is_last = merged[group_row].x != 0;
  __threadfence();
  if (!is_last) return;
  sync_threads(barrier_id, kGroupThreads);  // all have read is_last
  const auto slot_row = [&](int index, int row) {
    return static_cast<int64_t>(slots.slot(index)) * Shape<kHeadDim>::kRows + row;
  };
  const auto state_of = [&](int index, int row) {
    return __ldcg(reinterpret_cast<const float2*>(a.work.partial_state) + slot_row(index, row));
  };
  const int32_t num_rows = min(kGroupRows, piece.tile.num_rows - group_row);
  if (thread < num_rows) {
    const int row = group_row + thread;
    float2 all = make_float2(kMinusInf, 0);
#pragma unroll 4
    for (int j = 0; j < slots.num_pieces; ++j) all.x = fmaxf(all.x, state_of(j, row).x);
#pragma unroll 4
    for (int j = 0; j < slots.num_pieces; ++j) {
      const float2 one = state_of(j, row);
      all.y += exp2_fast(one.x - all.x) * one.y;
    }
    merged[row] = make_float2(all.x, 1.0f / with_sink(a, all.y, all.x, piece.kv_head, row));
  }
  sync_threads(barrier_id, kGroupThreads);
  const int num_values = num_rows * kColumns;
  for (int begin = thread; begin < num_values; begin += kAtOnce * kGroupThreads) {
    float4 out[kAtOnce] = {};
#pragma unroll 2
    for (int j = 0; j < slots.num_pieces; ++j) {
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int i = begin + u * kGroupThreads;
        if (i >= num_values) break;
        const int row = group_row + i / kColumns;
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
      const int i = begin + u * kGroupThreads;
      if (i >= num_values) break;
      const int row = group_row + i / kColumns;
      const float inverse = merged[row].y;
      uint2 packed;
      packed.x = Element<T>::pack(out[u].x * inverse, out[u].y * inverse);
      packed.y = Element<T>::pack(out[u].z * inverse, out[u].w * inverse);
      *reinterpret_cast<uint2*>(out_row<T>(a, piece.tile, piece.kv_head, row, kHeadDim) + i % kColumns * 4) =
          packed;
    }
  }
  sync_threads(barrier_id, kGroupThreads);  // merged may be written again
}

}  // namespace quire::cuda::attention
