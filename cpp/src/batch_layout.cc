#include "quire/batch_layout.h"

#include <algorithm>
#include <string>
#include <type_traits>

#include "quire/error.h"

namespace quire {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <typename T>
constexpr const char* dtype_name() {
  if constexpr (std::is_same_v<T, int32_t>) return "int32";
  if constexpr (std::is_same_v<T, uint32_t>) return "uint32";
  if constexpr (std::is_same_v<T, int64_t>) return "int64";
  if constexpr (std::is_same_v<T, uint64_t>) return "uint64";
  if constexpr (std::is_same_v<T, float>) return "float32";
}

void require_room(const char* field, int64_t given, int64_t lowest, int64_t highest) {
  if (given >= lowest && given <= highest) return;
  throw InvalidArgument(field, std::to_string(given),
                        std::to_string(lowest) + " (the batch's) to " + std::to_string(highest));
}

}  // namespace

void Batch::allocate(const Counts& largest) {
  for_each_column([&](const auto& column) {
    if (!column.length.is_list) (this->*column.values).resize(static_cast<size_t>(column.length.of(largest)));
  });
}

void Batch::clear() {
  num_seqs = num_tokens = num_sampled = max_query_len = max_seq_len = num_prompt_rows = 0;
  has_logprobs = has_masks = has_adjustments = false;
  for_each_column([&](const auto& column) {
    if (column.length.is_list) (this->*column.values).clear();
  });
}

template <class Visit>
void BatchLayout::for_each_own_column(Visit visit) const {
  for_each_column([&](const auto& column) {
    if (column.part >= first_ && column.part <= last_) visit(column);
  });
}

template <class Count>
void BatchLayout::place(int64_t alignment, Count count_of) {
  for_each_own_column([&]<class T>(const Column<T>& column) {
    const int64_t count = count_of(column);
    double padding = static_cast<double>(column.padding);
    if (padding == kSpareRow) padding = spare_row_;
    arrays_.push_back({column.name, dtype_name<T>(), num_bytes_, count, column.length, padding});
    num_bytes_ = round_up(num_bytes_ + count * static_cast<int64_t>(sizeof(T)), alignment);
  });
}

BatchLayout::BatchLayout(const EngineConfig& config)
    : BatchLayout(Part::kStep, Part::kStep, config.max_num_seqs) {
  const int64_t num_entries = int64_t{config.max_num_seqs} * config.max_blocks_per_request();
  const int64_t num_seqs = config.max_num_seqs, num_tokens = config.max_num_batched_tokens;
  room_ = {1, round_up(num_tokens, kPaddedTo), round_up(num_seqs, kPaddedTo), round_up(num_seqs, kPaddedTo)};
  const Counts most_in_lists = {1, num_tokens, num_seqs, num_seqs, num_tokens, num_entries};
  place(kAlignment,
        [&](const auto& column) { return column.length.of(column.length.is_list ? most_in_lists : room_); });
}

BatchLayout BatchLayout::for_adjustments(int32_t max_num_seqs) {
  BatchLayout layout(Part::kLogprobs, Part::kAdjustments, max_num_seqs);
  layout.room_[static_cast<size_t>(Unit::kSample)] = round_up(max_num_seqs, kPaddedTo);
  const Counts most_in_lists = {1, 0, 0, max_num_seqs};
  layout.place(kAlignment, [&](const auto& column) {
    return column.length.of(column.length.is_list ? most_in_lists : layout.room_);
  });
  return layout;
}

BatchLayout BatchLayout::for_tables(const Batch& batch) {
  constexpr int64_t kRowsAlignment = 16;
  BatchLayout layout(Part::kTableRows, Part::kTableRows, 0);
  layout.place(kRowsAlignment, [&](const auto& column) { return column.size(batch); });
  return layout;
}

int64_t BatchLayout::pack(const Batch& batch, void* buffer, int32_t num_tokens, int32_t num_seqs,
                          int32_t num_sampled) const {
  const Counts padded = {1, num_tokens, num_seqs, num_sampled};
  const Counts used = batch.counts();
  const auto check = [&](const char* field, Unit unit) {
    const auto i = static_cast<size_t>(unit);
    if (room_[i] > 0) require_room(field, padded[i], used[i], room_[i]);
  };
  check("num_tokens", Unit::kToken);
  check("num_seqs", Unit::kSequence);
  check("num_sampled", Unit::kSample);

  int64_t end = 0;
  size_t index = 0;
  for_each_own_column([&]<class T>(const Column<T>& column) {
    const Array& array = arrays_[index++];
    const int64_t count = column.size(batch);
    const int64_t padded_count = column.length.is_list ? count : column.length.of(padded);
    QUIRE_CHECK(padded_count <= array.count, array.name << ": " << padded_count << " of " << array.count);
    if (padded_count == 0) return;
    const T* values = (batch.*column.values).data();
    T padding = static_cast<T>(array.padding);
    if (column.length.is_offsets && count > 0) padding = values[count - 1];
    T* out = reinterpret_cast<T*>(static_cast<std::byte*>(buffer) + array.offset);
    std::fill(std::copy_n(values, count, out), out + padded_count, padding);
    end = array.offset + padded_count * static_cast<int64_t>(sizeof(T));
  });
  return end;
}

}  // namespace quire
