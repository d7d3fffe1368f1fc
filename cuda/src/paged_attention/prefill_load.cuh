// The warpgroup of the wgmma kernel that loads: pieces, keys, values and the query.
#pragma once

#include "copy_engine.cuh"
#include "prefill_shape.cuh"
#include "tile_math.cuh"

namespace quire::cuda::attention {

// Piece number `index` of the line, which lies in the given tile.
__device__ inline Piece piece_of(const Line& line, const Tile& tile, int32_t index, int32_t window) {
  Piece piece{};
  piece.tile = tile;
  const int32_t offset = index - tile.line_begin;
  piece.kv_head = offset / tile.num_chunks;
  piece.chunk = offset - piece.kv_head * tile.num_chunks;
  piece.first_key = first_unit(tile.first_position, window) * kUnitKeys;
  piece.end_key = tile.num_keys;
  if (tile.num_chunks > 1) {
    piece.first_key += piece.chunk * line.chunk_units * kUnitKeys;
    piece.end_key = min(piece.first_key + line.chunk_units * kUnitKeys, tile.num_keys);
  }
  return piece;
}

// By a whole warp.
__device__ inline Piece find_piece(const KernelArgs& a, const Line& line, int32_t index) {
  if (index >= line.num_chunks) return Piece{};
  const Tile& tile = a.work.tiles[find_tile(a.work, line.num_tiles, index)];
  return piece_of(line, tile, index, a.p.config.window);
}

// Copies of tiles of keys, or of values: one box for each cache block.
template <int kHeadDim>
struct TileCopy {
  using S = Shape<kHeadDim>;
  const KernelArgs& a;
  const CUtensorMap* map;
  int32_t box_tokens;

  // Lane i's is the slot of the tile's box i, over 8; whatever, where there is none.
  __device__ int32_t slot_of(const Piece& piece, int32_t first_key) const {
    const int32_t from = threadIdx.x % 32 * box_tokens;
    const int32_t key = first_key + from;
    if (from >= S::kKeys || key >= piece.end_key) return 0;
    const int32_t* const table = a.p.block_tables + piece.tile.block_table_row * a.p.stride_block_table;
    const int32_t offset = key & (a.p.block_size - 1);
    return __ldg(table + (key >> a.block_shift)) * a.block_units + offset / 8;
  }

  // By a whole warp.
  __device__ void copy(uint32_t to, uint32_t full, const Piece& piece, int32_t first_key,
                       int32_t slot) const {
    constexpr int kMostBoxes = S::kKeys / 16;
    const int lane = threadIdx.x % 32;
    const int32_t num_keys = min(S::kKeys, piece.end_key - first_key);
    const int32_t box_bytes = box_tokens * kHeadDim * 2;
    const int32_t boxes = (num_keys + box_tokens - 1) / box_tokens;
    if (boxes == kMostBoxes) {
      int32_t slots[kMostBoxes];
#pragma unroll
      for (int i = 0; i < kMostBoxes; ++i) slots[i] = __shfl_sync(~0u, slot, i);
      if (elect_lane()) {
        arrive_and_expect(full, S::kStageBytes);
#pragma unroll
        for (int i = 0; i < kMostBoxes; ++i) {
          copy_box(to + i * 16 * kHeadDim * 2, map, full, 0, 0, 0, piece.kv_head, slots[i]);
        }
      }
    } else {
      if (lane == 0) arrive_and_expect(full, boxes * box_bytes);
      __syncwarp();
      if (lane < boxes) copy_box(to + lane * box_bytes, map, full, 0, 0, 0, piece.kv_head, slot);
    }
  }
};

template <int kHeadDim>
__device__ inline int32_t first_key_of_last_tile(const Piece& piece) {
  constexpr int kKeys = Shape<kHeadDim>::kKeys;
  return piece.first_key + (piece.end_key - piece.first_key - 1) / kKeys * kKeys;
}

// Warp 0: pieces and keys.
template <int kHeadDim>
__device__ inline void produce_keys(const KernelArgs& a, const CUtensorMap* map, const Shared& shared,
                                    int32_t num_workers) {
  using S = Shape<kHeadDim>;
  const int lane = threadIdx.x % 32;
  const Line line = *a.work.line;
  const TileCopy<kHeadDim> tiles = {a, map, min(a.p.block_size, kUnitKeys)};
  RingPosition<kPieces> ring;
  RingPosition<S::kStages> at;
  // The first piece is the worker's own, those after go to whoever asks.
  int32_t index = blockIdx.x;
  Piece piece = find_piece(a, line, index);
  while (true) {
    wait_barrier(QUIRE_BARRIER(piece_empty, ring.stage), ring.parity ^ 1);
    if (lane == 0) {
      shared.pieces[ring.stage] = piece;
      arrive(QUIRE_BARRIER(piece_full, ring.stage));
    }
    ring.advance();
    if (piece.first_key == piece.end_key) break;
    int32_t first_key = first_key_of_last_tile<kHeadDim>(piece);
    int32_t slot = tiles.slot_of(piece, first_key);
    for (; first_key >= piece.first_key; first_key -= S::kKeys) {
      const int32_t next_slot = first_key > piece.first_key ? tiles.slot_of(piece, first_key - S::kKeys) : 0;
      wait_barrier(QUIRE_BARRIER(keys_empty, at.stage), at.parity ^ 1);
      // Asked for at the last tile, not before: asking early takes work from those who end early.
      if (first_key == piece.first_key && lane == 0) index = num_workers + atomicAdd(&a.work.line->next, 1);
      tiles.copy(shared.base + S::kKeysAt + at.stage * S::kStageBytes, QUIRE_BARRIER(keys_full, at.stage),
                 piece, first_key, slot);
      at.advance();
      slot = next_slot;
    }
    index = __shfl_sync(~0u, index, 0);
    piece = find_piece(a, line, index);
  }
  // The last worker to leave winds the counter back for the next layer.
  if (lane == 0 && atomicAdd(&a.work.line->num_done, 1) == num_workers - 1) {
    a.work.line->next = 0;
    a.work.line->num_done = 0;
  }
}

// The next piece for a warp that does not compute.
__device__ inline Piece take_piece(const Shared& shared, RingPosition<kPieces>& ring) {
  wait_barrier(QUIRE_BARRIER(piece_full, ring.stage), ring.parity);
  const Piece piece = shared.pieces[ring.stage];
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(QUIRE_BARRIER(piece_empty, ring.stage));
  ring.advance();
  return piece;
}

// Warp 1: values.
template <int kHeadDim>
__device__ inline void produce_values(const KernelArgs& a, const CUtensorMap* map, const Shared& shared) {
  using S = Shape<kHeadDim>;
  const TileCopy<kHeadDim> tiles = {a, map, min(a.p.block_size, kUnitKeys)};
  RingPosition<kPieces> ring;
  RingPosition<S::kStages> at;
  while (true) {
    const Piece piece = take_piece(shared, ring);
    if (piece.first_key == piece.end_key) break;
    int32_t first_key = first_key_of_last_tile<kHeadDim>(piece);
    int32_t slot = tiles.slot_of(piece, first_key);
    for (; first_key >= piece.first_key; first_key -= S::kKeys) {
      const int32_t next_slot = first_key > piece.first_key ? tiles.slot_of(piece, first_key - S::kKeys) : 0;
      wait_barrier(QUIRE_BARRIER(values_empty, at.stage), at.parity ^ 1);
      tiles.copy(shared.base + S::kValuesAt + at.stage * S::kStageBytes, QUIRE_BARRIER(values_full, at.stage),
                 piece, first_key, slot);
      at.advance();
      slot = next_slot;
    }
  }
}

// Warps 2 and 3: the query of each piece, rows past its end as zeros.
template <class T, int kHeadDim>
__device__ inline void produce_query(const KernelArgs& a, const Shared& shared) {
  using S = Shape<kHeadDim>;
  constexpr int kColumns = kHeadDim / 8;      // of 16 bytes
  constexpr int kRowColumns = S::kChunk / 8;  // of a row in shared memory
  RingPosition<kPieces> ring;
  RingPosition<1> query;
  while (true) {
    const Piece piece = take_piece(shared, ring);
    if (piece.first_key == piece.end_key) break;
    wait_barrier(QUIRE_BARRIER(query_empty, 0), query.parity ^ 1);
#pragma unroll 4
    for (int i = threadIdx.x - (kGroupThreads - kQueryThreads); i < S::kRows * kColumns; i += kQueryThreads) {
      const int row = i / kColumns, column = i % kColumns;
      const int valid_row = min(row, piece.tile.num_rows - 1);
      const int64_t token = piece.tile.first_token + valid_row / a.group;
      const int64_t head = piece.kv_head * a.group + valid_row % a.group;
      const uint32_t in_chunk = row * S::kRowBytes + column % kRowColumns * 16;
      const uint32_t to = column / kRowColumns * S::kRows * S::kRowBytes + swizzled<S::kRowBytes>(in_chunk);
      copy_async(
          shared.base + to,
          static_cast<const T*>(a.p.query) + token * a.p.stride_query_token + head * kHeadDim + column * 8,
          row < piece.tile.num_rows);
    }
    commit_copies();
    wait_copies<0>();
    fence_shared_for_async();
    arrive(QUIRE_BARRIER(query_full, 0));
    query.advance();
  }
}

}  // namespace quire::cuda::attention
