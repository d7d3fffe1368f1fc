// The wgmma kernel's sizes, its shared memory, and what its warps tell each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan.cuh"

namespace quire::cuda::attention {

constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kConsumers = 2;       // warpgroups
constexpr int kGroupRows = 64;      // of a consumer
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kQueryThreads = 64;
constexpr int kPieceReaders = 4 * kConsumers + 1 + kQueryThreads / 32;  // warps
constexpr int kPieces = 2;                                              // in the ring
constexpr int kConsumerWarps = 4 * kConsumers;

struct Piece {
  Tile tile;
  int32_t kv_head;
  int32_t chunk;
  int32_t first_key;
  int32_t end_key;  // at most tile.num_keys; first_key: there are no more pieces
};

struct Barriers {
  uint64_t piece_full[kPieces], piece_empty[kPieces];
  uint64_t query_full, query_empty;
  uint64_t keys_full[4], keys_empty[4];
  uint64_t values_full[4], values_empty[4];
};

template <int kHeadDim>
struct Shape {
  static constexpr int kRows = prefill_rows(kHeadDim);
  static constexpr int kKeys = 128;  // of a tile
  static constexpr int kStages = kHeadDim == 64 ? 3 : 2;
  static constexpr int kChunk = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kChunks = kHeadDim / kChunk;
  static constexpr int kRowBytes = kChunk * 2;
  // Bytes of a tile of keys or values: 8 rows of a chunk, and all chunks of 8 keys.
  static constexpr int kBoxRowsBytes = 8 * kRowBytes;
  static constexpr int kGroupBytes = kChunks * kBoxRowsBytes;
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kStageBytes = kKeys * kHeadDim * 2;  // of keys, or of values
  static constexpr int kKeysAt = kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * kStageBytes;
  static constexpr int kPiecesAt = kValuesAt + kStages * kStageBytes;
  static constexpr int kBarriersAt = kPiecesAt + kPieces * static_cast<int>(sizeof(Piece));
  static constexpr int kMergedAt = kBarriersAt + static_cast<int>(sizeof(Barriers));
  static constexpr int kSharedBytes = kMergedAt + kRows * 8 + 1024;  // its start is aligned in the kernel
  static_assert(kRows == kConsumers * kGroupRows);
  static_assert(kSharedBytes <= 227 * 1024);
};

// Where the 16-byte column at `offset` of a tile lies: rows as the copy engine swizzles them.
template <int kRowBytes>
__device__ inline uint32_t swizzled(uint32_t offset) {
  return offset ^ (offset >> 3 & (kRowBytes == 128 ? 0x70 : 0x30));
}

struct Shared {
  uint32_t base;  // aligned to 1024 bytes
  Piece* pieces;
  float2* merged;
  uint32_t barriers;

  __device__ uint32_t barrier(size_t member, int i) const {
    return barriers + static_cast<uint32_t>(member) + 8 * i;
  }
};

#define QUIRE_BARRIER(name, i) shared.barrier(offsetof(Barriers, name), i)

}  // namespace quire::cuda::attention
