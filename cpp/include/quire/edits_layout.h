// What the samples of a batch ask for beside BatchLayout's arrays, logprobs and edits, in one buffer with
// every array at a fixed offset: captured graphs read them from where they are. Only batches that have such a
// request are packed and copied.
#pragma once

#include <array>
#include <cstdint>

#include "quire/batch.h"
#include "quire/batch_layout.h"

namespace quire {

class EditsLayout {
 public:
  // In the order of the buffer: kBiasIds are the end of what a step copies, kBiases are copied by themselves.
  // Types and meanings are those of Batch and BatchEdits.
  enum Index {
    kNumLogprobs,
    kMinP,
    kRepetitionPenalty,
    kPresencePenalty,
    kFrequencyPenalty,
    kAllowedRows,
    kBiasOffsets,
    kBiasIds,
    kBiases,
    kNumArrays,
  };
  static constexpr int32_t kMaxBiases = kMaxLogitBias + kMaxBadWords;  // of one request

  // Samples have room for max_num_seqs, biases for as many as those may have.
  explicit EditsLayout(int32_t max_num_seqs);

  const BatchLayout::Array& operator[](Index index) const { return arrays_[index]; }
  const std::array<BatchLayout::Array, kNumArrays>& arrays() const { return arrays_; }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  std::array<BatchLayout::Array, kNumArrays> arrays_;
  int64_t num_bytes_ = 0;
};

// Writes what the batch's samples ask for into `buffer` (layout.num_bytes(), aligned to 8), and for samples
// up to num_sampled that they ask for nothing. Returns the number of biases. Throws InvalidArgument when
// num_sampled is smaller than the batch's or larger than the layout's.
int32_t pack(const Batch& batch, const EditsLayout& layout, void* buffer, int32_t num_sampled);

}  // namespace quire
