// Attention of sequences with few query tokens: up to 16 packed rows, bound by reading keys and values.
//
// Grid: plan's workers. Block: 4 warps. A worker walks its run of chunks, 64 keys a step; of each step warp w
// has keys [16 w, 16 w + 16) for itself: it copies them through its own ring of stages, multiplies, and keeps
// its own softmax state and accumulators for all rows. Warps meet only at the end of a piece. Copies run
// ahead across the ends of pieces.
//
// Dependencies: the kernels before this one may still run when it begins. Where the params say
// follows_layer, plan, block tables and all keys before the query tokens are read before the wait. That
// is safe because this kernel lets its dependents start only after its own wait: whatever runs after the
// first layer's attention runs after the end of all that was before that, and so of the plan.
// Behind the kernel of this layer's prompts it waits for nothing: that lets this one start only after its own
// wait, and has nothing that this one reads. Its end is waited for at this kernel's end.
//
// Shared memory: ring [warp][stage][keys, values][16], then the exchange.
#pragma once

#include "common/dependency.cuh"
#include "decode_finish.cuh"
#include "kernels.h"
#include "launch.cuh"

namespace quire::cuda::attention {

template <class T, class KV, int kHeadDim, int kFold>
struct DecodeShape : DecodeTypes<T, KV, kHeadDim * kFold> {
  using Types = DecodeTypes<T, KV, kHeadDim * kFold>;
  static constexpr int kWidth = kHeadDim * kFold;
  static constexpr int kTileCache = 24;                        // tiles of a worker that lie in shared memory
  static constexpr int kOther = 1024 + kTileCache * 32 + 128;  // the system's, and static shared memory
  static constexpr int kRoom =
      228 * 1024 / decode_blocks_per_sm(kHeadDim) - kOther - Exchange<kHeadDim>::kBytes;
  static constexpr int kFitting = kRoom / (kWarps * Types::kStageBytes);
  static constexpr int kStages = kFitting < 6 ? kFitting : 6;
  static constexpr int kRingBytes = kStages * Types::kStageBytes;  // of a warp
  static constexpr int kSharedBytes = kWarps * kRingBytes + Exchange<kHeadDim>::kBytes;
  static_assert(kStages >= 2);
  // Steps that copies are ahead: what the ring holds, for a short run. In a long one less suffices for the
  // memory's rate, blocks' shares of it are more equal, and the kernels around this one get theirs.
  // Measured for these types alone.
  static constexpr int kMostAhead = kStages - 1;
  static constexpr int kLongRun = 20;  // steps
  static constexpr bool kSparesLongRuns = kHeadDim == 128 && !Types::kIsFloat8;
  static constexpr int kLongAhead = kSparesLongRuns ? 1 : kMostAhead;
};

// A place in a worker's run of chunks.
struct Cursor {
  Tile tile;
  int32_t tile_idx;
  int32_t kv_head;
  int32_t chunk;
  int32_t unit, unit_end;  // 64-key steps of the open piece that are left: [unit, unit_end)
  int32_t line, line_end;  // chunks after the open piece: [line, line_end)

  // Opens the next piece; false at the end of the run. next_tile(i): tile number i.
  template <class NextTile>
  __device__ bool open_piece(const KernelArgs& a, const Line& l, NextTile&& next_tile) {
    if (line >= line_end) return false;
    while (line >= tile.line_begin + tile.num_chunks * a.p.config.num_kv_heads) tile = next_tile(++tile_idx);
    const int32_t offset = line - tile.line_begin;
    kv_head = offset / tile.num_chunks;
    chunk = offset - kv_head * tile.num_chunks;
    const int32_t num_chunks = l.balanced ? min(line_end - line, tile.num_chunks - chunk) : 1;
    const int32_t first = first_unit(tile.first_position, a.p.config.window);
    unit = first + chunk * l.chunk_units;
    unit_end = min(unit + num_chunks * l.chunk_units, (tile.num_keys + kUnitKeys - 1) / kUnitKeys);
    line += num_chunks;
    return true;
  }
};

// From the L2 cache: what lies in that of the SM may be of a step before.
template <class T>
__device__ inline T load_32_bytes(const T* from) {
  static_assert(sizeof(T) == 32 && alignof(T) == 16);
  union Parts {
    __device__ Parts() {}
    int4 parts[2];
    T whole;
  } x;
  x.parts[0] = __ldcg(reinterpret_cast<const int4*>(from));
  x.parts[1] = __ldcg(reinterpret_cast<const int4*>(from) + 1);
  return x.whole;
}

// A warp's copies: one step after the other, over the ends of pieces.
template <class Shape>
struct Loader {
  Cursor at;
  bool has_step;
  uint32_t ring, stage;
  int32_t blocks;  // lane i: the block of the warp's keys in unit first_block_unit + i of tile blocks_of
  int32_t first_block_unit, blocks_of;

  __device__ int32_t first_key() const {
    return at.unit * kUnitKeys + static_cast<int32_t>(threadIdx.x) / 32 * 16;
  }

  __device__ void find_blocks(const KernelArgs& a) {
    if (!has_step ||
        (blocks_of == at.tile_idx && at.unit >= first_block_unit && at.unit < first_block_unit + 32)) {
      return;
    }
    blocks_of = at.tile_idx;
    first_block_unit = at.unit;
    const int32_t key = first_key() + static_cast<int32_t>(threadIdx.x) % 32 * kUnitKeys;
    // Block 0 past the end, where nothing is read.
    blocks = key < at.tile.num_keys
                 ? __ldcg(a.p.block_tables + at.tile.block_table_row * a.p.stride_block_table +
                          (key >> a.block_shift))
                 : 0;
  }

  // Whether the step's keys were there before this step of the model.
  __device__ bool is_old() const { return !has_step || first_key() + 16 <= at.tile.first_position; }

  template <class NextTile>
  __device__ void step(const KernelArgs& a, const Line& line, NextTile&& next_tile) {
    if (has_step) {
      const int32_t key = first_key();
      const int64_t block = __shfl_sync(~0u, blocks, at.unit - first_block_unit);
      const int64_t stride_slot = a.p.config.num_kv_heads * Shape::kKeyBytes;
      const int32_t slot = key & ((1 << a.block_shift) - 1);
      const int64_t offset = block * (a.p.stride_block * Shape::Types::kElementBytes) + slot * stride_slot +
                             at.kv_head * Shape::kKeyBytes;
      copy_keys<typename Shape::Types>(static_cast<const unsigned char*>(a.p.key_cache) + offset,
                                       static_cast<const unsigned char*>(a.p.value_cache) + offset,
                                       stride_slot, at.tile.num_keys - key, stage);
      if (++at.unit == at.unit_end) has_step = at.open_piece(a, line, next_tile);
      find_blocks(a);
    }
    commit_copies();  // also when empty, so that the count of groups stays true
    advance(stage);
  }

  __device__ void advance(uint32_t& at_stage) const {
    at_stage += Shape::kStageBytes;
    if (at_stage == ring + Shape::kRingBytes) at_stage = ring;
  }
};

// Scores of 16 keys from first_key on, in base 2, hidden ones -infinity.
template <int kTiles>
__device__ inline void finish_scores(const KernelArgs& a, const Tile& tile, int32_t first_key,
                                     float (&scores)[kTiles][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[m][i] = scaled_score(a, scores[m][i]);
  }
  const int32_t window = a.p.config.window == 0 ? kNoWindow : a.p.config.window;
  const bool is_past_end = first_key + 15 > tile.first_position;
  if (!is_past_end && first_key > tile.num_keys - 1 - window) return;
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t row = 8 * m + lane % 4 * 2 + i % 2;
      const int32_t key = first_key + lane / 4 + i / 2 * 8;
      const int32_t position = min(tile.first_position + row / a.group, tile.num_keys - 1);
      const bool is_hidden = key > position || key <= position - window;
      if (is_hidden) scores[m][i] = kMinusInf;  // a select: the score may be NaN
    }
  }
}

template <class T, class KV, int kHeadDim, int kFold, int kTiles>
__global__ void __launch_bounds__(kBlockThreads, decode_blocks_per_sm(kHeadDim))
    decode_kernel(const KernelArgs a) {
  using Shape = DecodeShape<T, KV, kHeadDim, kFold>;
  constexpr int kWidth = Shape::kWidth;
  using Types = typename Shape::Types;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ Tile tiles[Shape::kTileCache];  // from the worker's first one on
  __shared__ CutPiece cut[2];
  const int warp = threadIdx.x / 32;
  float* const exchange = reinterpret_cast<float*>(shared + kWarps * Shape::kRingBytes);

  const bool waits_first = !a.p.follows_layer && !a.follows_prefill;
  const bool waits_last = a.follows_prefill;
  if (waits_first) wait_for_dependencies();
  if (waits_last) __threadfence();  // what the SM's cache has of these arrays may be of a kernel before
  const Line line = load_32_bytes(a.work.line);
  const int32_t first_tile = __ldcg(a.work.first_tile + blockIdx.x);
  Cursor at;
  at.tile_idx = first_tile;
  at.tile = load_32_bytes(a.work.first_tiles + blockIdx.x);
  at.line = blockIdx.x * line.per_worker;
  at.line_end = min(at.line + line.per_worker, line.num_chunks);
  if (at.line >= at.line_end) {
    if (!waits_first) wait_for_dependencies();
    return;
  }

  // Beside prompts, decode has fewer SMs.
  const bool is_long = line.per_worker * line.chunk_units >= Shape::kLongRun && !a.follows_prefill;
  const int num_ahead = is_long ? Shape::kLongAhead : Shape::kMostAhead;
  const auto tile_in_memory = [&](int32_t i) { return load_32_bytes(a.work.tiles + i); };
  Loader<Shape> loader;
  loader.at = at;
  loader.ring = loader.stage = shared_address(shared) + warp * Shape::kRingBytes;
  loader.blocks_of = -1;
  loader.has_step = loader.at.open_piece(a, line, tile_in_memory);
  loader.find_blocks(a);
  const bool is_copier = threadIdx.x < Shape::kTileCache && first_tile + threadIdx.x < line.num_tiles;
  Tile cached;
  if (is_copier) cached = tile_in_memory(first_tile + threadIdx.x);
  bool has_waited = waits_first || waits_last;
#pragma unroll 1  // a short way to the first key through cold instruction caches
  for (int i = 0; i < num_ahead; ++i) {
    if (!has_waited && !loader.is_old()) {
      wait_for_dependencies();
      has_waited = true;
    }
    loader.step(a, line, tile_in_memory);
  }
  if (!has_waited) wait_for_dependencies();
  launch_dependents();
  if (is_copier) tiles[threadIdx.x] = cached;
  __syncthreads();  // tiles
  const auto tile_at_hand = [&](int32_t i) {
    return i - first_tile < Shape::kTileCache ? tiles[i - first_tile] : load_32_bytes(a.work.tiles + i);
  };

  int num_cut = 0;
  uint32_t stage = loader.ring;
  while (at.open_piece(a, line, tile_at_hand)) {
    uint32_t query[kTiles][kWidth / 16][2];
    load_query<Types, T, kHeadDim, kFold, kTiles>(a, at.tile, at.kv_head, query);
    float acc[kWidth / 16][kTiles][4] = {};
    DecodeSoftmax<kTiles> softmax;
    for (; at.unit < at.unit_end; ++at.unit) {
      if (is_long) {
        wait_copies<Shape::kLongAhead - 1>();
      } else {
        wait_copies<Shape::kMostAhead - 1>();
      }
      __syncwarp();  // all lanes' copies of this stage are there, and all have read the stage before it
      loader.step(a, line, tile_at_hand);
      float scores[kTiles][4] = {};
      multiply_keys<Types, kWidth, kTiles>(stage, query, scores);
      finish_scores<kTiles>(a, at.tile, at.unit * kUnitKeys + 16 * warp, scores);
      softmax.step(scores, acc);
      uint32_t probabilities[kTiles][2];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          probabilities[m][h] =
              transposed(Element<typename Types::Product>::pack(scores[m][2 * h], scores[m][2 * h + 1]));
        }
      }
      multiply_values<Types, kWidth, kTiles>(stage, probabilities, acc);
      loader.advance(stage);
    }
    const Slots slots =
        slots_of_piece(at.tile, at.kv_head, at.chunk, line.balanced ? line.per_worker : 0, blockIdx.x);
    finish_piece<Types, T, kHeadDim, kFold, kTiles>(a, at.tile, at.kv_head, slots, softmax, acc, exchange);
    if (slots.num_pieces > 1) {
      // Balanced, at most the first and the last piece of a run are cut. The first is counted at the end too:
      // the fence would wait for all copies on their way.
      if (threadIdx.x == 0) {
        cut[num_cut] =
            CutPiece{slots.base, slots.num_pieces, at.tile.first_token, at.tile.num_rows, at.kv_head};
      }
      if (++num_cut == 2 || !line.balanced) {
        count_and_merge<T, kHeadDim>(a, cut, num_cut, line.balanced);
        num_cut = 0;
      }
    }
  }
  if (num_cut > 0) count_and_merge<T, kHeadDim>(a, cut, num_cut, line.balanced);
  if (waits_last) wait_for_dependencies();
}

template <class T, class KV, int kHeadDim, int kFold>
void launch_decode(const KernelArgs& args, cudaStream_t stream) {
  const bool has_8_rows = args.group <= 8 && args.p.max_query_len * args.group <= 8;
  launch(has_8_rows ? decode_kernel<T, KV, kHeadDim, kFold, 1> : decode_kernel<T, KV, kHeadDim, kFold, 2>,
         args, DecodeShape<T, KV, kHeadDim, kFold>::kSharedBytes, stream);
}

}  // namespace quire::cuda::attention
