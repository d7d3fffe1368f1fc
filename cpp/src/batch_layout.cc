#include "quire/batch_layout.h"

#include <algorithm>
#include <string>

#include "quire/error.h"

namespace quire {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <typename T>
constexpr const char* kDtype = "";
template <>
constexpr const char* kDtype<int32_t> = "int32";
template <>
constexpr const char* kDtype<int64_t> = "int64";
template <>
constexpr const char* kDtype<uint64_t> = "uint64";
template <>
constexpr const char* kDtype<float> = "float32";

// Writes arrays to where the layout has them.
class Writer {
 public:
  Writer(const BatchLayout& layout, void* buffer)
      : layout_(layout), buffer_(static_cast<std::byte*>(buffer)) {}

  // The first `count` values, then `padding` up to `padded_count`.
  template <typename T>
  void write(BatchLayout::Index index, const T* values, int64_t count, int64_t padded_count, T padding) {
    const BatchLayout::Array& array = layout_[index];
    T* out = reinterpret_cast<T*>(buffer_ + array.offset);
    std::fill(std::copy_n(values, count, out), out + padded_count, padding);
    end_ = std::max(end_, array.offset + padded_count * static_cast<int64_t>(sizeof(T)));
  }
  // As many as there are.
  template <typename T>
  void write(BatchLayout::Index index, const T* values, int64_t count) {
    QUIRE_CHECK(count <= layout_[index].count,
                layout_[index].name << ": " << count << " of " << layout_[index].count);
    if (count > 0) write(index, values, count, count, T{});
  }
  int64_t end() const { return end_; }

 private:
  const BatchLayout& layout_;
  std::byte* buffer_;
  int64_t end_ = 0;
};

void require_room(const char* field, int32_t given, int32_t lowest, int64_t highest) {
  if (given >= lowest && given <= highest) return;
  throw InvalidArgument(field, std::to_string(given),
                        std::to_string(lowest) + " (the batch's) to " + std::to_string(highest));
}

}  // namespace

BatchLayout::BatchLayout(const EngineConfig& config) : dump_row_(config.max_num_seqs) {
  const int64_t num_reqs = round_up(config.max_num_seqs, kPaddedTo);
  const int64_t num_tokens = round_up(config.max_num_batched_tokens, kPaddedTo);
  const auto add = [this]<typename T>(Index index, const char* name, int64_t count, T) {
    arrays_[index] = {name, kDtype<T>, num_bytes_, count};
    num_bytes_ = round_up(num_bytes_ + count * static_cast<int64_t>(sizeof(T)), kAlignment);
  };
  add(kHeader, "header", kHeaderSize, int32_t{});
  add(kQueryStartLoc, "query_start_loc", num_reqs + 1, int32_t{});
  add(kSeqLens, "seq_lens", num_reqs, int32_t{});
  add(kBlockTableRows, "block_table_rows", num_reqs, int32_t{});
  add(kSampleTokenIdx, "sample_token_idx", num_reqs, int32_t{});
  add(kSampleRows, "sample_rows", num_reqs, int32_t{});
  add(kTemperature, "temperature", num_reqs, float{});
  add(kTopP, "top_p", num_reqs, float{});
  add(kTopK, "top_k", num_reqs, int32_t{});
  add(kSeed, "seed", num_reqs, uint64_t{});
  add(kOutputIdx, "output_idx", num_reqs, int32_t{});
  add(kMaskOffsets, "mask_offsets", num_reqs + 1, int32_t{});
  add(kTokenIds, "token_ids", num_tokens, int32_t{});
  add(kPositions, "positions", num_tokens, int32_t{});
  add(kSlotMapping, "slot_mapping", num_tokens, int64_t{});
  add(kBlockCopies, "block_copies", 2 * int64_t{config.max_num_seqs}, int32_t{});
  add(kMaskIds, "mask_ids", int64_t{config.max_num_seqs} * kMaxMaskIds, int32_t{});
  add(kBlockTableUpdates, "block_table_updates",
      2 * int64_t{config.max_num_seqs} * config.max_blocks_per_request(), int32_t{});
}

int64_t pack(const Batch& batch, const BatchLayout& layout, void* buffer, int32_t num_tokens,
             int32_t num_reqs, int32_t num_sampled) {
  using L = BatchLayout;
  require_room("num_tokens", num_tokens, batch.num_tokens, layout[L::kTokenIds].count);
  require_room("num_reqs", num_reqs, batch.num_reqs, layout[L::kSeqLens].count);
  require_room("num_sampled", num_sampled, batch.num_sampled, layout[L::kSampleRows].count);

  Writer out(layout, buffer);
  const int32_t header[L::kHeaderSize] = {batch.num_reqs, batch.num_tokens, batch.num_sampled,
                                          batch.num_block_table_updates()};
  out.write(L::kHeader, header, L::kHeaderSize);

  const auto per_request = [&](L::Index index, const std::vector<int32_t>& values) {
    out.write(index, values.data(), batch.num_reqs, num_reqs, 0);
  };
  out.write(L::kQueryStartLoc, batch.query_start_loc.data(), batch.num_reqs + 1, num_reqs + 1,
            batch.num_tokens);
  per_request(L::kSeqLens, batch.seq_lens);
  per_request(L::kBlockTableRows, batch.block_table_rows);

  const auto per_sample = [&]<typename T>(L::Index index, const std::vector<T>& values, T padding) {
    out.write(index, values.data(), batch.num_sampled, num_sampled, padding);
  };
  const int32_t num_mask_ids = batch.mask_offsets[batch.num_sampled];
  per_sample(L::kSampleTokenIdx, batch.sample_token_idx, 0);
  per_sample(L::kSampleRows, batch.sample_rows, layout.dump_row());
  per_sample(L::kTemperature, batch.temperature, 0.0f);
  per_sample(L::kTopP, batch.top_p, 1.0f);
  per_sample(L::kTopK, batch.top_k, 0);
  per_sample(L::kSeed, batch.seed, uint64_t{0});
  per_sample(L::kOutputIdx, batch.output_idx, 0);
  out.write(L::kMaskOffsets, batch.mask_offsets.data(), batch.num_sampled + 1, num_sampled + 1, num_mask_ids);

  out.write(L::kTokenIds, batch.token_ids.data(), batch.num_tokens, num_tokens, 0);
  out.write(L::kPositions, batch.positions.data(), batch.num_tokens, num_tokens, 0);
  out.write(L::kSlotMapping, batch.slot_mapping.data(), batch.num_tokens, num_tokens, int64_t{-1});
  out.write(L::kBlockCopies, batch.block_copies.data(), static_cast<int64_t>(batch.block_copies.size()));
  out.write(L::kMaskIds, batch.mask_ids.data(), num_mask_ids);
  out.write(L::kBlockTableUpdates, batch.block_table_updates.data(),
            static_cast<int64_t>(batch.block_table_updates.size()));
  return out.end();
}

}  // namespace quire
