// Attention of sequences with many query tokens: tiles of 64 or 128 packed rows, bound by arithmetic.
//
// Grid: plan's workers, two blocks per SM (one for head_dim 256). Block: 4 warps of 16 or 32 rows. A worker
// takes pieces from the line's counter; of a piece it walks the keys 64 at a time, with the next 64 keys and
// values on their way into the other of two stages.
//
// Shared memory: query [rows][kRowBytes], then two stages [keys, values][64][kRowBytes]. With a cache of
// 8-bit floats: one stage, and two of [keys, values][64][kHeadDim] bytes as they lie in the cache, from which
// each warp converts the keys that it has copied.
//
// kIsPadded: heads in memory are shorter than kHeadDim, and what is missing is zeros.
#pragma once

#include "common/dependency.cuh"
#include "float8.cuh"
#include "kernels.h"
#include "launch.cuh"
#include "tile_math.cuh"

namespace quire::cuda::attention {

template <int kHeadDim, bool kIsFloat8 = false>
struct PrefillShape {
  static constexpr int kRows = prefill_rows(kHeadDim);
  static constexpr int kWarpRows = kRows / kWarps;
  static constexpr int kFragments = kWarpRows / 16;  // of 16 rows, per warp
  static constexpr int kQueryBytes = kRows * kRowBytes<kHeadDim>;
  static constexpr int kHalfStageBytes = kUnitKeys * kRowBytes<kHeadDim>;  // keys, or values
  static constexpr int kHalfRawBytes = kUnitKeys * kHeadDim;
  static constexpr int kSharedBytes =
      kQueryBytes + (kIsFloat8 ? 2 * kHalfStageBytes + 4 * kHalfRawBytes : 4 * kHalfStageBytes);
  static_assert(kUnitKeys == 16 * kWarps);  // each warp copies 16 keys
  static_assert((kSharedBytes + 1024 + 1280) * blocks_per_sm(kHeadDim) <= 228 * 1024);
};

template <class T, int kHeadDim, bool kIsPadded>
__device__ void copy_query(const KernelArgs& a, const Tile& tile, int32_t kv_head, uint32_t to) {
  constexpr int kColumns = kHeadDim / 8;
  const int32_t dim = memory_dim<kHeadDim, kIsPadded>(a);
  for (int i = threadIdx.x; i < PrefillShape<kHeadDim>::kRows * kColumns; i += kBlockThreads) {
    const int row = i / kColumns, column = i % kColumns;
    const int valid_row = min(row, tile.num_rows - 1);
    const int64_t token = tile.first_token + valid_row / a.group;
    const int64_t head = kv_head * a.group + valid_row % a.group;
    const bool is_there = !kIsPadded || column * 8 < dim;
    copy_async(to + row * kRowBytes<kHeadDim> + column * 16,
               static_cast<const T*>(a.p.query) + token * a.p.stride_query_token + head * dim +
                   (is_there ? column * 8 : 0),
               is_there && row < tile.num_rows);
  }
}

// Accumulators of 16 rows, first_row + g and first_row + g + 8, to the output or to the piece's slot.
template <class T, int kHeadDim, bool kIsPadded>
__device__ void write_rows(const KernelArgs& a, const Tile& tile, int32_t kv_head, const Slots& slots,
                           int32_t first_row, const SoftmaxState& state,
                           const float (&acc)[kHeadDim / 8][4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int32_t row = first_row + g + 8 * h;
    const float sum = sum_of_row(state.sum[h]);
    if (row >= tile.num_rows) continue;
    if (slots.num_pieces == 1) {
      const float inverse = a.value_scale / with_sink(a, sum, state.max[h], kv_head, row);
      const int32_t dim = memory_dim<kHeadDim, kIsPadded>(a);
      T* const to = out_row<T>(a, tile, kv_head, row, dim) + 2 * t;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        if (kIsPadded && n * 8 >= dim) continue;
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            Element<T>::pack(acc[n][2 * h] * inverse, acc[n][2 * h + 1] * inverse);
      }
    } else {
      const int64_t slot_row = static_cast<int64_t>(slots.mine) * PrefillShape<kHeadDim>::kRows + row;
      float* const to = a.work.partial_out + slot_row * kHeadDim + 2 * t;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        *reinterpret_cast<float2*>(to + n * 8) = make_float2(acc[n][2 * h], acc[n][2 * h + 1]);
      }
      if (t == 0) {
        reinterpret_cast<float2*>(a.work.partial_state)[slot_row] = make_float2(state.max[h], sum);
      }
    }
  }
}

// 16 rows of keys, or of values, from the cache's bytes.
template <class T, int kHeadDim>
__device__ void convert_16_rows(uint32_t from, uint32_t to) {
  constexpr int kColumns = kHeadDim / 16;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = lane; i < 16 * kColumns; i += 32) {
    uint32_t raw[4], x[8];
    load_shared(raw, from + i * 16);
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = pair_of<T>(raw[j / 2] >> j % 2 * 16);
    const uint32_t at = to + i / kColumns * kRowBytes<kHeadDim> + i % kColumns * 32;
    store_shared(at, x[0], x[1], x[2], x[3]);
    store_shared(at + 16, x[4], x[5], x[6], x[7]);
  }
}

template <class T, class KV, int kHeadDim, bool kIsPadded>
__global__ void __launch_bounds__(kBlockThreads, blocks_per_sm(kHeadDim)) prefill_kernel(const KernelArgs a) {
  constexpr bool kIsFloat8 = std::is_same_v<KV, Float8>;
  using Shape = PrefillShape<kHeadDim, kIsFloat8>;
  constexpr int kSteps = kHeadDim / 16;
  constexpr int kFragments = Shape::kFragments;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ int32_t next_piece;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t query = shared_address(shared);
  const uint32_t stages = query + Shape::kQueryBytes;
  const uint32_t raw_stages = stages + 2 * Shape::kHalfStageBytes + 16 * warp * kHeadDim;

  const int32_t warp_row = warp * Shape::kWarpRows;
  // ldmatrix: lane's row and 16-byte column within 16 rows and 16 elements.
  const uint32_t query_lane = (warp_row + lane % 16) * kRowBytes<kHeadDim> + lane / 16 * 16;
  const uint32_t key_lane = (lane / 16 * 8 + lane % 8) * kRowBytes<kHeadDim> + lane / 8 % 2 * 16;
  const uint32_t value_lane =
      Shape::kHalfStageBytes + (lane / 8 % 2 * 8 + lane % 8) * kRowBytes<kHeadDim> + lane / 16 * 16;

  wait_for_dependencies();
  // Like prefill_wgmma_kernel: blocks that the plan gives to decode leave, then that kernel may start.
  const int32_t num_workers = __ldcg(&a.work.line->num_sms) * blocks_per_sm(kHeadDim);
  if (static_cast<int32_t>(blockIdx.x) >= num_workers) return;
  launch_dependents();
  const int32_t window = a.p.config.window;
  const float scale_log2 = a.p.soft_cap > 0 ? 1.0f : a.scale_log2;
  const int32_t num_tiles = a.work.line->num_tiles;
  const int32_t num_pieces = a.work.line->num_chunks;
  const int32_t chunk_units = a.work.line->chunk_units;
  // The first piece is the worker's own (all blocks are resident), those after go to whoever asks.
  int32_t piece = blockIdx.x;
  while (piece < num_pieces) {
    const Tile tile = a.work.tiles[find_tile(a.work, num_tiles, piece)];
    const int32_t offset = piece - tile.line_begin;
    const int32_t kv_head = offset / tile.num_chunks;
    const int32_t chunk = offset - kv_head * tile.num_chunks;
    const int32_t num_units = (tile.num_keys + kUnitKeys - 1) / kUnitKeys;
    const int32_t unit_begin =
        first_unit(tile.first_position, window) + (tile.num_chunks == 1 ? 0 : chunk * chunk_units);
    const int32_t unit_end = tile.num_chunks == 1 ? num_units : min(unit_begin + chunk_units, num_units);

    copy_query<T, kHeadDim, kIsPadded>(a, tile, kv_head, query);
    int32_t load_key = unit_begin * kUnitKeys + 16 * warp;
    int32_t load_block = block_of_key(a, tile, load_key);
    const auto load_unit = [&](int32_t unit) {
      if constexpr (kIsFloat8) {
        const uint32_t to = raw_stages + unit % 2 * 2 * Shape::kHalfRawBytes;
        copy_16_keys<KV, kHeadDim, kIsPadded, kHeadDim>(a, load_block, kv_head, load_key, tile.num_keys, to,
                                                        to + Shape::kHalfRawBytes);
      } else {
        const uint32_t to = stages + unit % 2 * 2 * Shape::kHalfStageBytes + 16 * warp * kRowBytes<kHeadDim>;
        copy_16_keys<KV, kHeadDim, kIsPadded>(a, load_block, kv_head, load_key, tile.num_keys, to,
                                              to + Shape::kHalfStageBytes);
      }
      load_key += kUnitKeys;
      load_block = block_of_key(a, tile, load_key);
    };
    load_unit(unit_begin);
    commit_copies();

    const bool has_rows = warp_row < tile.num_rows;
    const int32_t first_masked = tile.first_position + warp_row / a.group + 1;  // of the warp's first row
    // The warp's last row's; keys from there on are masked for no row by the window.
    const int32_t last_start =
        window == 0 ? 0 : tile.first_position + (warp_row + Shape::kWarpRows - 1) / a.group - window + 1;
    int32_t last_key[kFragments][2];
    SoftmaxState state[kFragments];
    float acc[kFragments][kHeadDim / 8][4] = {};
#pragma unroll
    for (int m = 0; m < kFragments; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int32_t row = warp_row + 16 * m + 8 * h + lane / 4;
        last_key[m][h] = min(tile.first_position + row / a.group, tile.num_keys - 1);
        state[m].max[h] = kMinusInf;
        state[m].sum[h] = 0;
      }
    }

    for (int32_t unit = unit_begin; unit < unit_end; ++unit) {
      wait_copies<0>();
      __syncthreads();  // this unit's keys and values are there; the other stage is read
      if constexpr (kIsFloat8) {
        const uint32_t from = raw_stages + unit % 2 * 2 * Shape::kHalfRawBytes;
        const uint32_t to = stages + 16 * warp * kRowBytes<kHeadDim>;
        convert_16_rows<T, kHeadDim>(from, to);
        convert_16_rows<T, kHeadDim>(from + Shape::kHalfRawBytes, to + Shape::kHalfStageBytes);
      }
      if (unit + 1 < unit_end) {
        load_unit(unit + 1);
      } else if (threadIdx.x == 0) {
        // Asked for during the last step, not before: asking early takes work from those who end early.
        next_piece = num_workers + atomicAdd(&a.work.line->next, 1);
      }
      commit_copies();
      if constexpr (kIsFloat8) __syncthreads();  // the keys and values of all warps are converted
      if (!has_rows) continue;

      const uint32_t stage = kIsFloat8 ? stages : stages + unit % 2 * 2 * Shape::kHalfStageBytes;
      const int32_t first_key = unit * kUnitKeys;
      float scores[kFragments][kUnitKeys / 8][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t q[kFragments][4];
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
          load_matrices(q[m], query + query_lane + 16 * m * kRowBytes<kHeadDim> + k * 32);
        }
#pragma unroll
        for (int n = 0; n < kUnitKeys / 16; ++n) {
          uint32_t b[4];
          load_matrices(b, stage + key_lane + 16 * n * kRowBytes<kHeadDim> + k * 32);
#pragma unroll
          for (int m = 0; m < kFragments; ++m) {
            Element<T>::mma(scores[m][2 * n], q[m], b[0], b[1]);
            Element<T>::mma(scores[m][2 * n + 1], q[m], b[2], b[3]);
          }
        }
      }
      const bool is_masked = first_key + kUnitKeys > first_masked || first_key < last_start;
      if (a.p.soft_cap > 0) {
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
#pragma unroll
          for (int n = 0; n < kUnitKeys / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) scores[m][n][i] = scaled_score(a, scores[m][n][i]);
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kFragments; ++m) {
        softmax_step<kUnitKeys / 8>(scores[m], acc[m], state[m], scale_log2, is_masked, first_key,
                                    last_key[m], window == 0 ? kNoWindow : window);
      }
#pragma unroll
      for (int j = 0; j < kUnitKeys / 16; ++j) {
        uint32_t probabilities[kFragments][4];
#pragma unroll
        for (int m = 0; m < kFragments; ++m) {
          probabilities_as_a<T>(probabilities[m], scores[m][2 * j], scores[m][2 * j + 1]);
        }
#pragma unroll
        for (int n = 0; n < kHeadDim / 16; ++n) {
          uint32_t b[4];
          load_matrices_transposed(b, stage + value_lane + 16 * j * kRowBytes<kHeadDim> + n * 32);
#pragma unroll
          for (int m = 0; m < kFragments; ++m) {
            Element<T>::mma(acc[m][2 * n], probabilities[m], b[0], b[1]);
            Element<T>::mma(acc[m][2 * n + 1], probabilities[m], b[2], b[3]);
          }
        }
      }
    }

    const Slots slots = slots_of_piece(tile, kv_head, chunk, 0, 0);
#pragma unroll
    for (int m = 0; m < kFragments; ++m) {
      write_rows<T, kHeadDim, kIsPadded>(a, tile, kv_head, slots, warp_row + 16 * m, state[m], acc[m]);
    }
    if (slots.num_pieces > 1) {
      const Slots pieces[1] = {slots};
      bool is_last[1];
      count_pieces(a.work, pieces, 1, is_last);
      if (is_last[0]) merge_pieces<T, kHeadDim, kIsPadded, Shape::kRows>(a, tile, kv_head, slots);
    }
    __syncthreads();  // next_piece; and all have read the query and both stages
    piece = next_piece;
    __syncthreads();  // next_piece may be written again
  }
  // The last worker to leave winds the counter back for the next layer.
  if (threadIdx.x == 0 && atomicAdd(&a.work.line->num_done, 1) == num_workers - 1) {
    a.work.line->next = 0;
    a.work.line->num_done = 0;
  }
}

template <class T, class KV, int kHeadDim, bool kIsPadded>
void launch_prefill(const KernelArgs& args, cudaStream_t stream) {
  launch(prefill_kernel<T, KV, kHeadDim, kIsPadded>, args,
         PrefillShape<kHeadDim, std::is_same_v<KV, Float8>>::kSharedBytes, stream);
}

}  // namespace quire::cuda::attention
