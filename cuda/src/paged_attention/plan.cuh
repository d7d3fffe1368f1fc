// How a batch is cut into work, and where the workspace keeps it.
//
// The query tokens of a sequence times the heads that share a KV head are "packed rows": row r is query token
// r / group, head r % group of the group. A tile is a run of packed rows of one sequence; an item is a tile
// with one KV head: one attention problem of up to kRows rows against the keys that its last row sees.
//
//   sequences of up to 16 packed rows (decode):  one tile of up to 16 rows   -> decode_kernel
//   longer ones (prompts):                      tiles of 64 or 128 rows     -> prefill_wgmma_kernel,
//   prefill_kernel
//
// Each class lays its items end to end on a line, in units of `chunk_keys` keys. Item by item, sequence by
// sequence: tile.line_begin + kv_head * tile.num_chunks + chunk. A piece is a run of chunks of one item.
//
//   decode:   worker w takes chunks [w * per_worker, (w + 1) * per_worker). Balanced: a chunk is 64 keys, and
//             what a worker has of an item is one piece, so each worker holds at most two cut items.
//             With a fixed split each chunk is a piece.
//   prefill:  each chunk is a piece; workers take the next one from a counter, longest items first
//
// Where a step has both, both run at once, prompts on as many SMs as the plan says and decode on the others:
// what bounds the one, arithmetic, is not what bounds the other, memory.
//
// A piece that is not its whole item leaves (O, max, sum) in a slot of the workspace; the worker that
// finishes an item's last missing piece adds the slots up in the order of their keys.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quire/cuda/paged_attention.h"

namespace quire::cuda::attention {

constexpr int kUnitKeys = 64;  // keys of one step of a block of threads
constexpr int kDecodeRows = 16;
// The head size that kernels compute with, of heads of any size: those between have zeros behind them. They
// have no decode kernel of their own: prefill_kernel takes all sequences.
__host__ __device__ constexpr int compute_dim(int head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 96 ? 96 : head_dim <= 128 ? 128 : 256;
}
__host__ __device__ constexpr bool has_decode(int head_dim) { return head_dim == compute_dim(head_dim); }

// For either kernel, what shared memory and registers allow.
__host__ __device__ constexpr int blocks_per_sm(int head_dim) { return head_dim <= 128 ? 2 : 1; }
__host__ __device__ constexpr int decode_blocks_per_sm(int head_dim) { return head_dim <= 128 ? 2 : 1; }

__host__ __device__ constexpr int prefill_rows(int head_dim) { return head_dim <= 128 ? 128 : 64; }
// Whether prefill_wgmma_kernel takes the prompts: one block per SM.
__host__ __device__ constexpr bool has_wgmma(int head_dim) { return head_dim <= 128; }

// Decode reads this many adjacent KV heads as one of as many times the dimensions, so that what it reads at a
// time is not shorter than the memory likes. The packed rows are those of all of the heads, with zeros where
// a query has the dimensions of another head.
__host__ __device__ constexpr int32_t folded_heads(const PagedAttentionConfig& c) {
  const bool fits = c.num_kv_heads % 2 == 0 && c.num_q_heads / c.num_kv_heads * 2 <= kDecodeRows / 2;
  return c.head_dim == 64 && fits ? 2 : 1;
}

struct alignas(16) Tile {
  int32_t line_begin;
  int32_t slot_begin;
  int32_t num_chunks;       // of each item
  int32_t num_keys;         // that the last row sees
  int32_t first_token;      // query token of row 0
  int32_t num_rows;         // packed rows
  int32_t first_position;   // of row 0
  int32_t block_table_row;  // of the sequence
};
static_assert(sizeof(Tile) == 32);

// The first unit with a key that the token at first_position sees: a tile's chunks begin there.
__host__ __device__ inline int32_t first_unit(int32_t first_position, int32_t window) {
  const int32_t first_key = first_position - window + 1;
  return window > 0 && first_key > 0 ? first_key / kUnitKeys : 0;
}

struct alignas(16) Line {
  int32_t num_tiles;
  int32_t num_chunks;   // length of the line
  int32_t chunk_units;  // units of kUnitKeys keys per chunk
  int32_t per_worker;   // decode: chunks of a worker
  int32_t balanced;     // decode: pieces are runs of chunks
  int32_t next;         // prefill: first piece that no worker has taken
  int32_t num_done;     // prefill: workers that found no more pieces
  int32_t num_sms;      // prefill: that run it
};
static_assert(sizeof(Line) == 32);

// Pointers into the workspace.
struct Work {
  Line* line;
  Tile* tiles;            // [max_tiles]
  int32_t* first_tile;    // [num_workers], decode only: index of the tile of the worker's first chunk,
  Tile* first_tiles;      // [num_workers] and that tile
  int32_t* num_finished;  // [num_counters] pieces of a cut item that are done; zero between launches
  float* partial_out;     // [num_slots, rows, head_dim] not divided by the sum
  float* partial_state;   // [num_slots, rows, 2] maximum (times softmax_scale, base 2) and sum
  int32_t num_workers;
  int32_t max_tiles;
  int32_t num_slots;
  int32_t num_counters;
};

struct Workspace {
  Work decode;
  Work prefill;
  size_t bytes;
};

// Lays the workspace out from `base` (null to learn the size).
Workspace lay_out(const PagedAttentionConfig& config, void* base);
void check(const PagedAttentionConfig& config);

// Which slots hold the pieces of the item that a piece belongs to.
struct Slots {
  int32_t num_pieces;  // of the item; 1: the piece is the whole item
  int32_t counter;
  int32_t mine;
  int32_t base;
  bool balanced;

  __device__ int32_t slot(int32_t piece) const {
    return balanced ? 2 * (base + piece) + (piece == 0 ? 1 : 0) : base + piece;
  }
};

// per_worker: 0 where each chunk is a piece.
__device__ inline Slots slots_of_piece(const Tile& tile, int32_t kv_head, int32_t chunk, int32_t per_worker,
                                       int32_t worker) {
  Slots s;
  s.balanced = per_worker > 0;
  if (s.balanced) {
    // The item's first piece ends its worker's run (slot 2w + 1), the others begin theirs (slot 2w).
    const int32_t begin = tile.line_begin + kv_head * tile.num_chunks;
    s.base = begin / per_worker;
    s.num_pieces = (begin + tile.num_chunks - 1) / per_worker - s.base + 1;
    s.counter = s.base;
    s.mine = s.slot(worker - s.base);
  } else {
    s.base = tile.slot_begin + kv_head * tile.num_chunks;
    s.num_pieces = tile.num_chunks;
    s.counter = s.base;
    s.mine = s.base + chunk;
  }
  return s;
}

// The tile whose stretch of the line holds `chunk`: a search in 32 parts by a whole warp.
__device__ inline int32_t find_tile(const Work& work, int32_t num_tiles, int32_t chunk) {
  const int lane = threadIdx.x % 32;
  int32_t low = 0;
  for (int32_t left = num_tiles; left > 1;) {
    const int32_t step = (left + 31) / 32;
    const bool is_before = lane * step < left && work.tiles[low + lane * step].line_begin <= chunk;
    const int32_t skipped = (__popc(__ballot_sync(~0u, is_before)) - 1) * step;
    low += skipped;
    left = min(step, left - skipped);
  }
  return low;
}

}  // namespace quire::cuda::attention
