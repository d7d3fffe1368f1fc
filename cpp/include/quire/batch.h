// One step's work as columns: what the model runner reads. Owned by the scheduler, allocated once. A batch
// holds until its own update() (EngineCore); the runner never writes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "quire/sampling.h"

namespace quire {

// What the length of a column counts. A step has one header; table entries are those of block_tables.
enum class Unit : uint8_t { kStep, kToken, kSequence, kSample, kPromptRow, kTableEntry };
constexpr int kNumUnits = 6;
using Counts = std::array<int64_t, kNumUnits>;  // by Unit

struct Length {
  Unit unit = Unit::kStep;
  int32_t per_unit = 1;     // elements; for lists the most
  int32_t width = 1;        // 2: elements are pairs
  bool is_offsets = false;  // one element more: entry i is where the i-th one begins in a list
  bool is_list = false;     // as many elements as there are

  int64_t of(const Counts& counts) const {
    return counts[static_cast<size_t>(unit)] * per_unit * width + is_offsets;
  }
};
constexpr Length per(Unit unit, int32_t num_elements = 1) { return {unit, num_elements}; }
constexpr Length offsets_of(Unit unit) { return {unit, 1, 1, true}; }
constexpr Length list_of(Unit unit, int32_t most = 1) { return {unit, most, 1, false, true}; }
constexpr Length pairs_of(Unit unit) { return {unit, 1, 2, false, true}; }

// Which buffer a column is packed into.
enum class Part : uint8_t { kStep, kLogprobs, kAdjustments, kTableRows, kHost };

// Padding that stands for max_num_seqs, a row of block_tables that no sequence has.
constexpr int32_t kSpareRow = INT32_MIN;

struct Batch {
  int32_t num_seqs = 0;
  int32_t num_tokens = 0;
  int32_t num_sampled = 0;  // sequences whose last token is in this batch: each gets new tokens
  int32_t max_query_len = 0;
  int32_t max_seq_len = 0;
  int32_t num_prompt_rows = 0;  // tokens of prompts whose logits are wanted for their logprobs
  bool has_logprobs = false;    // some of num_logprobs are not 0
  bool has_masks = false;       // some of mask_rows are not -1
  // The columns of kAdjustments are filled: some sample has penalties or the like.
  bool has_adjustments = false;

  // [max_num_seqs, max_blocks_per_request]; a running sequence keeps its row. Entries past its blocks are
  // stale. All batches share this table, and schedule() changes it: read it before the next schedule(), or
  // keep a copy by block_table_updates.
  const int32_t* block_tables = nullptr;
  int32_t block_table_stride = 0;
  int32_t num_block_table_rows = 0;

#define QUIRE_COLUMN(type, name, length, part, padding, meaning) std::vector<type> name;
#include "quire/batch_columns.def"

  // Gives every column room; lists grow as they need.
  void allocate(const Counts& largest);
  void clear();
  Counts counts() const { return {1, num_tokens, num_seqs, num_sampled, num_prompt_rows, 0}; }
};

template <class T>
struct Column {
  using Type = T;
  const char* name;
  std::vector<T> Batch::* values;
  Length length;
  Part part;
  T padding;
  const char* meaning;

  // How many elements the batch has in this column.
  int64_t size(const Batch& batch) const {
    if (length.is_list) return static_cast<int64_t>((batch.*values).size());
    return part == Part::kAdjustments && !batch.has_adjustments ? 0 : length.of(batch.counts());
  }
};

inline constexpr std::tuple kBatchColumns{
#define QUIRE_COLUMN(type, name, length, part, padding, meaning) \
  Column<type>{#name, &Batch::name, length, Part::part, padding, meaning},
#include "quire/batch_columns.def"
};

// Calls visit(column) for each column.
template <class Visit>
constexpr void for_each_column(Visit&& visit) {
  std::apply([&](const auto&... column) { (visit(column), ...); }, kBatchColumns);
}

}  // namespace quire
