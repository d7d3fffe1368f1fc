// Columns of a batch in one contiguous buffer, so that one copy takes them to a device: where each array
// lies, and the writer that fills it.
//
// Arrays lie at fixed offsets, so captured graphs can read them from where they are.
#pragma once

#include <cstdint>
#include <vector>

#include "quire/batch.h"
#include "quire/config.h"

namespace quire {

class BatchLayout {
 public:
  struct Array {
    const char* name = "";   // of the column
    const char* dtype = "";  // numpy's name
    int64_t offset = 0;      // bytes from the buffer's start
    int64_t count = 0;       // elements that have room
    Length length;
    double padding = 0;
  };

  // What every step brings: room for the largest batch of a config, which is valid. Tokens, sequences and
  // samples are rounded up to kPaddedTo.
  explicit BatchLayout(const EngineConfig& config);
  // What sequences with logprobs, penalties, biases and the like bring: for that many samples, rounded up.
  static BatchLayout for_adjustments(int32_t max_num_seqs);
  // What this batch writes to the samplers' tables. num_bytes is 0 when that is nothing.
  static BatchLayout for_tables(const Batch& batch);

  static constexpr int64_t kPaddedTo = 64;
  static constexpr int64_t kAlignment = 256;  // of every offset, in bytes

  const std::vector<Array>& arrays() const { return arrays_; }
  int64_t num_bytes() const { return num_bytes_; }

  // Writes the columns of the batch into `buffer` (num_bytes(), aligned to 8) as if it had the given numbers
  // of tokens, sequences and samples. Padding has the column's value; that of offsets is their last one.
  // Returns the length of the prefix that holds all of it. Throws InvalidArgument, and writes nothing, when a
  // number is smaller than the batch's or larger than the layout's.
  int64_t pack(const Batch& batch, void* buffer, int32_t num_tokens, int32_t num_seqs,
               int32_t num_sampled) const;

 private:
  BatchLayout(Part first, Part last, int32_t spare_row) : first_(first), last_(last), spare_row_(spare_row) {}
  template <class Count>
  void place(int64_t alignment, Count count);
  template <class Visit>
  void for_each_own_column(Visit visit) const;

  Part first_, last_;  // its columns
  int32_t spare_row_;
  Counts room_ = {};  // 0: none of its columns counts them
  std::vector<Array> arrays_;
  int64_t num_bytes_ = 0;
};

}  // namespace quire
