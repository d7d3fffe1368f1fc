// Block tables of running sequences: which blocks hold a sequence's tokens, shared prefixes included.
//
// Block i of a row holds the KV of tokens [i * block_size, (i + 1) * block_size) of its sequence. A row keeps
// its place in the table while it is open, so kernels can read a table that stays where it is from step to
// step.
//
// With a window (tokens that a token sees, itself included) leading blocks that nobody reads any more are
// given back: their entries name the null block, of which every row may have any number and which nobody
// writes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quire/block_pool.h"

namespace quire {

class BlockManager {
 public:
  // window: 0 is none. With one, a block of the pool is the null block.
  BlockManager(int32_t num_blocks, int32_t block_size, int32_t num_rows, int32_t max_blocks_per_row,
               int32_t window = 0);

  // Opens a row with room for num_tokens. Blocks of the longest cached prefix are shared, with a window those
  // of it that the next token sees; hashes are those of the sequence's first full blocks, as many as may be
  // shared. Empty, and nothing changed, when fewer than
  // num_spare_blocks would stay free. A free row must exist.
  struct Opened {
    int32_t row;
    int32_t num_cached_blocks;
  };
  std::optional<Opened> open(std::span<const BlockHash> hashes, int32_t num_tokens, int32_t num_spare_blocks);
  // Opens a row that goes on from the first num_tokens of `source_row`: it shares the blocks that these fill,
  // and has one of its own for the rest, into which the caller copies the source's block before it reads or
  // writes it. Empty, and nothing changed, when fewer than num_spare_blocks would stay free. A free row must
  // exist, and the source must have that many tokens.
  struct Forked {
    int32_t row;
    int32_t source_block;  // to be copied
    int32_t own_block;     // there; -1: nothing to copy
  };
  std::optional<Forked> fork(int32_t source_row, int32_t num_tokens, int32_t num_spare_blocks);
  // The length of the longest cached prefix.
  int32_t num_cached_blocks(std::span<const BlockHash> hashes) const;
  // Room for num_tokens in all. False, and nothing changed, when the pool has too few free blocks.
  bool extend(int32_t row, int32_t num_tokens) {
    // The usual case of a decode step: the last block has room.
    return num_tokens <= rows_[row].num_blocks * block_size_ || extend_slowly(row, num_tokens);
  }
  // The row's block is full and its KV is computed: others may find it from now on.
  void publish(int32_t row, int32_t block_idx, const BlockHash& hash) {
    pool_.publish(block_tables_[index(row, block_idx)], hash);
  }
  // Gives blocks back that no token from num_computed_tokens on sees.
  void leave_behind(int32_t row, int32_t num_computed_tokens);
  // Whether the row still has all that the token at `position` sees.
  bool reaches_back(int32_t row, int32_t position) const {
    return rows_[row].num_dropped_blocks <= num_unseen_blocks(position);
  }
  // Gives the row's blocks back, last block first, so that of a cached chain the end is evicted before its
  // parents.
  void close(int32_t row);

  int64_t slot(int32_t row, int32_t position) const {
    const auto p = static_cast<uint32_t>(position), size = static_cast<uint32_t>(block_size_);
    return static_cast<int64_t>(block_tables_[index(row, static_cast<int32_t>(p / size))]) * size + p % size;
  }
  // The row's blocks. Valid until the row changes.
  std::span<const int32_t> blocks(int32_t row) const {
    return {block_tables_.data() + index(row, 0), static_cast<size_t>(rows_[row].num_blocks)};
  }

  const BlockPool& pool() const { return pool_; }
  int32_t block_size() const { return block_size_; }
  int32_t num_blocks() const { return pool_.num_blocks() - (null_block_ >= 0); }  // that rows may have
  int32_t num_rows() const { return static_cast<int32_t>(rows_.size()); }
  int32_t num_open_rows() const { return num_rows() - static_cast<int32_t>(free_rows_.size()); }
  bool is_open(int32_t row) const { return rows_[row].is_open; }
  const int32_t* block_tables() const { return block_tables_.data(); }  // [num_rows, stride]
  int32_t stride() const { return stride_; }

  // What a copy of the tables must be told: pairs (row * stride + block_idx, block id) of all entries of open
  // rows that were set since the last call. Replaces what `updates` held, and takes its memory.
  void take_updates(std::vector<int32_t>& updates);
  // The copy may have missed some: the next take_updates() tells all entries of open rows.
  void repeat_updates() { is_copy_stale_ = true; }

  // Reference counts are those of the open rows; no block twice in a row. Throws InternalError.
  void check_integrity() const;

 private:
  struct Row {
    int32_t num_blocks = 0;
    int32_t num_dropped_blocks = 0;  // leading ones: null blocks
    bool is_open = false;
  };

  size_t index(int32_t row, int32_t block_idx) const {
    return static_cast<size_t>(row) * stride_ + block_idx;
  }
  int32_t num_blocks_for(int32_t num_tokens) const { return (num_tokens + block_size_ - 1) / block_size_; }
  // How many leading blocks the token at `position`, and those after it, do not see.
  int32_t num_unseen_blocks(int32_t position) const {
    return window_ == 0 ? 0 : std::max(0, position + 1 - window_) / block_size_;
  }
  // The length of the longest cached prefix; the ids of its blocks that the next token sees go to `ids`
  // [hashes.size()], by their place.
  int32_t find_prefix(std::span<const BlockHash> hashes, int32_t* ids) const;
  bool extend_slowly(int32_t row, int32_t num_tokens);
  void append_fresh_blocks(int32_t row, int32_t num_blocks);
  void keep_last_updates();
  void add_update(size_t entry) {
    updates_.push_back(static_cast<int32_t>(entry));
    updates_.push_back(block_tables_[entry]);
  }

  BlockPool pool_;
  int32_t block_size_;
  int32_t window_;
  int32_t null_block_ = -1;
  int32_t stride_;
  std::vector<int32_t> block_tables_;  // [num_rows, stride]; entries past a row's blocks are stale
  std::vector<Row> rows_;
  std::vector<int32_t> free_rows_;  // a stack, lowest row on top at the start
  std::vector<int32_t> updates_;    // see take_updates()
  bool is_copy_stale_ = false;
};

}  // namespace quire
