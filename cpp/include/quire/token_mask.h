// Which tokens a request may sample next, one bit per token: the only way in which a sampler is told that a
// token may not come. min_tokens, bad words and allowed ids are sources of a mask.
//
// The samplers keep a table token_masks [max_num_seqs + 1, num_mask_words] uint32, one row per row of the
// block tables: bit id % 32 of word id / 32 is set when the token may be sampled. A batch brings the words
// that change before it samples.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "quire/sampling.h"

namespace quire {

constexpr int32_t num_mask_words(int32_t vocab_size) { return (vocab_size + 31) / 32; }

// A place in the output of a request.
struct OutputPlace {
  int32_t output_idx = 0;           // how many ids come before it
  std::span<const int32_t> output;  // those of them that are known: all, for a mask that needs them
};

// A reason why tokens may not come. Never changes, so the sequences of a request share it.
class MaskSource {
 public:
  virtual ~MaskSource() = default;
  // Whether any token may not come at this place.
  virtual bool forbids(const OutputPlace& place) const = 0;
  // Whether other tokens may not come than at the place before.
  virtual bool changes(const OutputPlace& place) const = 0;
  // Clears the bits of the tokens that may not come at this place, which forbids some.
  virtual void apply(const OutputPlace& place, std::span<uint32_t> mask) const = 0;
  // Whether it must know every id before the place: then no batch may be in flight.
  virtual bool needs_output() const { return false; }
};

class TokenMask {
 public:
  TokenMask() = default;
  // params: valid. eos_token_ids: of the engine.
  TokenMask(const SamplingParams& params, const std::vector<int32_t>& eos_token_ids);

  bool is_empty() const { return sources_.empty(); }  // every token may come at every place
  bool forbids(const OutputPlace& place) const;
  bool changes(const OutputPlace& place) const;
  bool needs_output() const;
  void fill(const OutputPlace& place, std::span<uint32_t> mask) const;  // [num_mask_words]

 private:
  std::vector<std::unique_ptr<const MaskSource>> sources_;
};

// What the rows of token_masks hold on the device.
class MaskTable {
 public:
  MaskTable(int32_t num_rows, int32_t vocab_size)
      : num_rows_(num_rows), num_words_(num_mask_words(vocab_size)) {}

  // Appends pairs (index in the flat table, word): the words in which the row differs from the mask at this
  // place, or all of them when nobody knows what the row holds.
  void write(int32_t row, const TokenMask& mask, const OutputPlace& place, std::vector<int32_t>& updates);
  // The device may have lost updates: nobody knows what it holds.
  void forget() { is_known_.assign(is_known_.size(), false); }

 private:
  int32_t num_rows_, num_words_;
  std::vector<uint32_t> words_;  // [num_rows, num_words]; none before the first write
  std::vector<bool> is_known_;   // [num_rows]
  std::vector<uint32_t> wanted_;
};

}  // namespace quire
