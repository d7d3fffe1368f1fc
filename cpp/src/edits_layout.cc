#include "quire/edits_layout.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "quire/error.h"

namespace quire {

EditsLayout::EditsLayout(int32_t max_num_seqs) {
  const auto add = [this](Index index, const char* name, const char* dtype, int64_t count) {
    constexpr int64_t kElementSize = 4, kPerLine = BatchLayout::kAlignment / kElementSize;
    arrays_[index] = {name, dtype, num_bytes_, count};
    num_bytes_ += (count + kPerLine - 1) / kPerLine * BatchLayout::kAlignment;
  };
  add(kNumLogprobs, "num_logprobs", "int32", max_num_seqs);
  add(kMinP, "min_p", "float32", max_num_seqs);
  add(kRepetitionPenalty, "repetition_penalty", "float32", max_num_seqs);
  add(kPresencePenalty, "presence_penalty", "float32", max_num_seqs);
  add(kFrequencyPenalty, "frequency_penalty", "float32", max_num_seqs);
  add(kAllowedRows, "allowed_rows", "int32", max_num_seqs);
  add(kBiasOffsets, "bias_offsets", "int32", max_num_seqs + 1);
  add(kBiasIds, "bias_ids", "int32", int64_t{max_num_seqs} * kMaxBiases);
  add(kBiases, "biases", "float32", int64_t{max_num_seqs} * kMaxBiases);
}

int32_t pack(const Batch& batch, const EditsLayout& layout, void* buffer, int32_t num_sampled) {
  using L = EditsLayout;
  if (num_sampled < batch.num_sampled || num_sampled > layout[L::kMinP].count) {
    throw InvalidArgument(
        "num_sampled", std::to_string(num_sampled),
        std::to_string(batch.num_sampled) + " (the batch's) to " + std::to_string(layout[L::kMinP].count));
  }
  // The first `count` values, then `padding` up to `padded_count`.
  const auto write = [&]<typename T>(L::Index index, const std::vector<T>& values, int32_t count,
                                     int32_t padded_count, T padding) {
    T* out = reinterpret_cast<T*>(static_cast<std::byte*>(buffer) + layout[index].offset);
    std::fill(std::copy_n(values.begin(), count, out), out + padded_count, padding);
  };
  write(L::kNumLogprobs, batch.num_logprobs, batch.has_logprobs ? batch.num_sampled : 0, num_sampled, 0);

  const BatchEdits& edits = batch.edits;
  const int32_t num_edited = edits.is_empty ? 0 : batch.num_sampled;
  const auto num_biases = edits.is_empty ? 0 : static_cast<int32_t>(edits.bias_ids.size());
  QUIRE_CHECK(num_biases <= layout[L::kBiases].count, num_biases << " of " << layout[L::kBiases].count);
  write(L::kMinP, edits.min_p, num_edited, num_sampled, 0.0f);
  write(L::kRepetitionPenalty, edits.repetition_penalty, num_edited, num_sampled, 1.0f);
  write(L::kPresencePenalty, edits.presence_penalty, num_edited, num_sampled, 0.0f);
  write(L::kFrequencyPenalty, edits.frequency_penalty, num_edited, num_sampled, 0.0f);
  write(L::kAllowedRows, edits.allowed_rows, num_edited, num_sampled, -1);
  write(L::kBiasOffsets, edits.bias_offsets, edits.is_empty ? 0 : num_edited + 1, num_sampled + 1,
        num_biases);
  write(L::kBiasIds, edits.bias_ids, num_biases, num_biases, 0);
  write(L::kBiases, edits.biases, num_biases, num_biases, 0.0f);
  return num_biases;
}

}  // namespace quire
