// The warpgroup of the wgmma kernel that loads: pieces, keys, values and the query.
#pragma once

#include "copy_engine.cuh"
#include "prefill_shape.cuh"
#include "tile_math.cuh"

namespace quire::cuda::attention {

// By a whole warp.
__device__ inline Piece find_piece(const KernelArgs& a, const Line& line, int32_t index) {
  Piece piece{};
  if (index >= line.num_chunks) return piece;
  piece.tile = a.work.tiles[find_tile(a.work, line.num_tiles, index)];
  const int32_t offset = index - piece.tile.line_begin;
  piece.kv_head = offset / piece.tile.num_chunks;
  piece.chunk = offset - piece.kv_head * piece.tile.num_chunks;
  piece.end_key = piece.tile.num_keys;
  if (piece.tile.num_chunks > 1) {
    piece.first_key = piece.chunk * line.chunk_units * kUnitKeys;
    piece.end_key = min(piece.first_key + line.chunk_units * kUnitKeys, piece.tile.num_keys);
  }
  return piece;
}

// Warp 0: pieces, keys and values.
template <int kHeadDim>
__device__ inline void produce(const KernelArgs& a, const CUtensorMap* key_map, const CUtensorMap* value_map,
                               const Shared& shared) {
  using S = Shape<kHeadDim>;
  const int lane = threadIdx.x % 32;
  const Line line = *a.work.line;
  const int32_t box_tokens = min(a.p.block_size, kUnitKeys);
  const int32_t boxes = S::kKeys / box_tokens;
  // Lanes copy one box each: box_tokens keys from first_key + box_key on, of one chunk of the head.
  const int32_t box_key = lane % boxes * box_tokens;
  const int32_t chunk = lane / boxes;
  const uint32_t box_at = (chunk * S::kKeys + box_key) * S::kRowBytes;
  const int32_t block_mask = a.p.block_size - 1;

  RingPosition<kPieces> ring;
  RingPosition<S::kStages> keys_at, values_at;
  int32_t index = blockIdx.x;  // the first piece is the worker's own, those after go to whoever asks
  while (true) {
    const Piece piece = find_piece(a, line, index);
    wait_barrier(QUIRE_BARRIER(piece_empty, ring.stage), ring.parity ^ 1);
    if (lane == 0) {
      shared.pieces[ring.stage] = piece;
      arrive(QUIRE_BARRIER(piece_full, ring.stage));
    }
    ring.advance();
    if (piece.first_key == piece.end_key) break;

    const int32_t* const table = a.p.block_tables + piece.tile.block_table_row * a.p.stride_block_table;
    const auto slot_of = [&](int32_t first_key) {
      const int32_t key = first_key + box_key;
      if (chunk >= S::kChunks || key >= piece.end_key) return -1;
      return (__ldg(table + (key >> a.block_shift)) << a.block_shift) + (key & block_mask);
    };
    const auto copy_tile = [&](const CUtensorMap* map, uint32_t to, uint32_t full, int32_t first_key,
                               int32_t slot) {
      if (lane == 0) {
        const int32_t used = min(boxes, (piece.end_key - first_key + box_tokens - 1) / box_tokens);
        arrive_and_expect(full, used * box_tokens * kHeadDim * 2);
      }
      __syncwarp();
      if (slot >= 0) copy_box(to + box_at, map, full, chunk * S::kChunk, piece.kv_head, slot);
    };
    const auto copy_keys = [&](int32_t first_key, int32_t slot) {
      wait_barrier(QUIRE_BARRIER(keys_empty, keys_at.stage), keys_at.parity ^ 1);
      copy_tile(key_map, shared.base + S::kKeysAt + keys_at.stage * S::kStageBytes,
                QUIRE_BARRIER(keys_full, keys_at.stage), first_key, slot);
      keys_at.advance();
    };
    const auto copy_values = [&](int32_t first_key, int32_t slot) {
      wait_barrier(QUIRE_BARRIER(values_empty, values_at.stage), values_at.parity ^ 1);
      copy_tile(value_map, shared.base + S::kValuesAt + values_at.stage * S::kStageBytes,
                QUIRE_BARRIER(values_full, values_at.stage), first_key, slot);
      values_at.advance();
    };

    int32_t first_key = piece.first_key + (piece.end_key - piece.first_key - 1) / S::kKeys * S::kKeys;
    int32_t slot = slot_of(first_key);
    copy_keys(first_key, slot);
    while (first_key > piece.first_key) {
      const int32_t next_slot = slot_of(first_key - S::kKeys);
      copy_keys(first_key - S::kKeys, next_slot);
      copy_values(first_key, slot);
      first_key -= S::kKeys;
      slot = next_slot;
    }
    // Asked for at the last tile, not before: who asks early takes work from those who end early.
    if (lane == 0) index = gridDim.x + atomicAdd(&a.work.line->next, 1);
    copy_values(first_key, slot);
    index = __shfl_sync(~0u, index, 0);
  }
  // The last worker to leave winds the counter back for the next layer.
  if (lane == 0 && atomicAdd(&a.work.line->num_done, 1) == static_cast<int32_t>(gridDim.x) - 1) {
    a.work.line->next = 0;
    a.work.line->num_done = 0;
  }
}

// Warps 1 to 3: the query of each piece, rows past its end as zeros.
template <class T, int kHeadDim>
__device__ inline void produce_query(const KernelArgs& a, const Shared& shared) {
  using S = Shape<kHeadDim>;
  constexpr int kColumns = kHeadDim / 8;      // of 16 bytes
  constexpr int kRowColumns = S::kChunk / 8;  // of a row in shared memory
  RingPosition<kPieces> ring;
  RingPosition<1> query;
  while (true) {
    wait_barrier(QUIRE_BARRIER(piece_full, ring.stage), ring.parity);
    const Piece piece = shared.pieces[ring.stage];
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(QUIRE_BARRIER(piece_empty, ring.stage));
    ring.advance();
    if (piece.first_key == piece.end_key) break;
    wait_barrier(QUIRE_BARRIER(query_empty, 0), query.parity ^ 1);
#pragma unroll 4
    for (int i = threadIdx.x - 32; i < S::kRows * kColumns; i += kQueryThreads) {
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
