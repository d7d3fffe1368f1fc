// A batch in one contiguous buffer, so that one copy takes it to a device: where each array lies, for the
// largest batch of an engine, and the writer that fills it.
//
// Arrays lie at fixed offsets, so captured graphs can read them from where they are. Those that are mostly
// empty come last: what a step must copy is a short prefix.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "quire/batch.h"
#include "quire/config.h"

namespace quire {

class BatchLayout {
 public:
  // In the order of the buffer. Shapes, element types and meanings are those of Batch.
  enum Index {
    kHeader,  // [kHeaderSize] int32, of the batch without padding: num_reqs, num_tokens, num_sampled,
              // num_block_table_updates
    kQueryStartLoc,
    kSeqLens,
    kBlockTableRows,
    kSampleTokenIdx,
    kSampleRows,
    kTemperature,
    kTopP,
    kTopK,
    kSeed,
    kOutputIdx,
    kMaskOffsets,
    kTokenIds,
    kPositions,
    kSlotMapping,
    kBlockCopies,  // pairs; not in the header: what copies them is launched for those that there are
    kMaskIds,
    kBlockTableUpdates,  // pairs
    kNumArrays,
  };
  static constexpr int64_t kHeaderSize = 4;
  static constexpr int64_t kAlignment = 256;  // of every offset, in bytes

  struct Array {
    const char* name = "";   // of the field of Batch, or "header"
    const char* dtype = "";  // "int32", "int64", "uint64", "float32"
    int64_t offset = 0;      // bytes from the buffer's start
    int64_t count = 0;       // elements that have room
  };

  // config: valid. Requests and samples have room for max_num_seqs, tokens for max_num_batched_tokens, both
  // rounded up to kPaddedTo.
  explicit BatchLayout(const EngineConfig& config);
  static constexpr int32_t kPaddedTo = 64;

  const Array& operator[](Index index) const { return arrays_[index]; }
  const std::array<Array, kNumArrays>& arrays() const { return arrays_; }
  int64_t num_bytes() const { return num_bytes_; }
  int32_t dump_row() const { return dump_row_; }  // max_num_seqs: no request's row; for padding samples

 private:
  std::array<Array, kNumArrays> arrays_;
  int64_t num_bytes_ = 0;
  int32_t dump_row_ = 0;
};

// Writes the batch into `buffer` (layout.num_bytes(), aligned to 8) as if it had the given numbers of tokens,
// requests and samples. Padding tokens: id 0, position 0, slot -1. Padding requests: no tokens, seq_len 0,
// row 0. Padding samples: token 0, sample_row max_num_seqs, temperature 0, top_p 1, top_k 0, seed 0,
// output_idx 0, no mask. Returns the length of the prefix that holds all of it. Throws InvalidArgument when a
// number is smaller than the batch's or larger than the layout's.
int64_t pack(const Batch& batch, const BatchLayout& layout, void* buffer, int32_t num_tokens,
             int32_t num_reqs, int32_t num_sampled);

}  // namespace quire
