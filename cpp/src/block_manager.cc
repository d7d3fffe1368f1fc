#include "quire/block_manager.h"

#include <algorithm>
#include <utility>

#include "quire/error.h"

namespace quire {

BlockManager::BlockManager(int32_t num_blocks, int32_t block_size, int32_t num_rows,
                           int32_t max_blocks_per_row, int32_t window)
    : pool_(num_blocks), block_size_(block_size), window_(window), stride_(max_blocks_per_row) {
  if (block_size < 1) throw InvalidArgument("block_size", std::to_string(block_size), "at least 1");
  if (num_rows < 1) throw InvalidArgument("num_rows", std::to_string(num_rows), "at least 1");
  if (max_blocks_per_row < 1) {
    throw InvalidArgument("max_blocks_per_row", std::to_string(max_blocks_per_row), "at least 1");
  }
  block_tables_.assign(static_cast<size_t>(num_rows) * stride_, 0);
  rows_.resize(num_rows);
  updates_.reserve(2 * (static_cast<size_t>(num_rows) + stride_));
  free_rows_.reserve(num_rows);
  for (int32_t row = num_rows - 1; row >= 0; --row) free_rows_.push_back(row);
  if (window_ > 0) null_block_ = pool_.allocate().value();
}

std::optional<BlockManager::Opened> BlockManager::open(std::span<const BlockHash> hashes, int32_t num_tokens,
                                                       int32_t num_spare_blocks) {
  const int32_t num_wanted = num_blocks_for(num_tokens);
  QUIRE_CHECK(num_wanted <= stride_,
              num_tokens << " tokens need " << num_wanted << " blocks, a row has " << stride_);
  QUIRE_CHECK(!free_rows_.empty(), num_rows() << " rows are open");
  const int32_t row = free_rows_.back();
  int32_t* table = block_tables_.data() + index(row, 0);

  // The row's table is scratch until the row is open: a failed attempt leaves stale entries, and nothing
  // else.
  const int32_t num_cached =
      find_prefix(hashes.first(std::min(hashes.size(), static_cast<size_t>(num_wanted))), table);
  const int32_t num_dropped = num_unseen_blocks(num_cached * block_size_);
  // Cached blocks without a holder: sharing them takes them off the free list.
  const auto num_idle = static_cast<int32_t>(std::count_if(
      table + num_dropped, table + num_cached, [this](int32_t id) { return pool_.ref_count(id) == 0; }));
  if (num_wanted - num_cached + num_idle + num_spare_blocks > pool_.num_free()) return std::nullopt;

  free_rows_.pop_back();
  for (int32_t i = 0; i < num_cached; ++i) {
    if (i < num_dropped) {
      table[i] = null_block_;
    } else {
      pool_.acquire(table[i]);
    }
    add_update(index(row, i));
  }
  rows_[row] = {num_cached, num_dropped, true};
  append_fresh_blocks(row, num_wanted - num_cached);
  return Opened{row, num_cached};
}

std::optional<BlockManager::Forked> BlockManager::fork(int32_t source_row, int32_t num_tokens,
                                                       int32_t num_spare_blocks) {
  const int32_t num_shared = num_tokens / block_size_;
  const int32_t num_own = num_blocks_for(num_tokens) - num_shared;
  QUIRE_CHECK(
      rows_[source_row].is_open && num_shared + num_own <= rows_[source_row].num_blocks,
      num_tokens << " tokens of row " << source_row << " with " << rows_[source_row].num_blocks << " blocks");
  QUIRE_CHECK(rows_[source_row].num_dropped_blocks <= num_shared,
              num_tokens << " tokens of row " << source_row << ", which left them behind");
  QUIRE_CHECK(!free_rows_.empty(), num_rows() << " rows are open");
  if (num_own + num_spare_blocks > pool_.num_free()) return std::nullopt;

  const int32_t row = free_rows_.back();
  free_rows_.pop_back();
  const int32_t num_dropped = rows_[source_row].num_dropped_blocks;
  for (int32_t i = 0; i < num_shared; ++i) {
    const int32_t block_id = block_tables_[index(source_row, i)];
    if (i >= num_dropped) pool_.acquire(block_id);
    block_tables_[index(row, i)] = block_id;
    add_update(index(row, i));
  }
  rows_[row] = {num_shared, num_dropped, true};
  append_fresh_blocks(row, num_own);
  if (num_own == 0) return Forked{row, -1, -1};
  return Forked{row, block_tables_[index(source_row, num_shared)], block_tables_[index(row, num_shared)]};
}

int32_t BlockManager::num_cached_blocks(std::span<const BlockHash> hashes) const {
  return find_prefix(hashes, nullptr);
}

// Without a window a prefix ends before the first block that is not cached. With one it may go on after such,
// once as many blocks follow as the next token sees.
int32_t BlockManager::find_prefix(std::span<const BlockHash> hashes, int32_t* ids) const {
  int32_t length = 0;
  int32_t run_begin = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(hashes.size()); ++i) {
    const std::optional<int32_t> block_id = pool_.find(hashes[i]);
    if (!block_id) {
      if (window_ == 0) break;
      run_begin = i + 1;
      continue;
    }
    if (ids) ids[i] = *block_id;
    if (run_begin <= num_unseen_blocks((i + 1) * block_size_)) length = i + 1;
  }
  return length;
}

void BlockManager::leave_behind(int32_t row, int32_t num_computed_tokens) {
  const int32_t num_unseen = std::min(num_unseen_blocks(num_computed_tokens), rows_[row].num_blocks);
  int32_t& num_dropped = rows_[row].num_dropped_blocks;
  if (num_unseen <= num_dropped) return;
  // Last block first, as in close().
  for (int32_t i = num_unseen - 1; i >= num_dropped; --i) {
    const size_t entry = index(row, i);
    pool_.release(block_tables_[entry]);
    block_tables_[entry] = null_block_;
    add_update(entry);
  }
  num_dropped = num_unseen;
}

bool BlockManager::extend_slowly(int32_t row, int32_t num_tokens) {
  QUIRE_CHECK(rows_[row].is_open, "row " << row);
  const int32_t num_wanted = num_blocks_for(num_tokens);
  QUIRE_CHECK(num_wanted <= stride_,
              num_tokens << " tokens need " << num_wanted << " blocks, a row has " << stride_);
  const int32_t num_fresh = num_wanted - rows_[row].num_blocks;
  if (num_fresh > pool_.num_free()) return false;
  append_fresh_blocks(row, num_fresh);
  return true;
}

void BlockManager::append_fresh_blocks(int32_t row, int32_t num_blocks) {
  for (int32_t i = 0; i < num_blocks; ++i) {
    const std::optional<int32_t> block_id = pool_.allocate();
    QUIRE_CHECK(block_id, "free blocks were counted before");
    const size_t entry = index(row, rows_[row].num_blocks++);
    block_tables_[entry] = *block_id;
    add_update(entry);
  }
}

void BlockManager::close(int32_t row) {
  QUIRE_CHECK(rows_[row].is_open, "row " << row);
  for (int32_t i = rows_[row].num_blocks - 1; i >= rows_[row].num_dropped_blocks; --i) {
    pool_.release(block_tables_[index(row, i)]);
  }
  rows_[row] = {};
  free_rows_.push_back(row);
}

void BlockManager::take_updates(std::vector<int32_t>& updates) {
  if (is_copy_stale_) {
    updates_.clear();
    for (int32_t row = 0; row < num_rows(); ++row) {
      for (int32_t i = 0; i < rows_[row].num_blocks; ++i) add_update(index(row, i));
    }
    is_copy_stale_ = false;
  } else if (window_ > 0) {
    keep_last_updates();
  }
  updates.clear();
  std::swap(updates, updates_);
}

// An entry may have been left behind, and its row opened again, since the last call.
void BlockManager::keep_last_updates() {
  std::vector<int32_t> entries;
  for (size_t i = 0; i < updates_.size(); i += 2) entries.push_back(updates_[i]);
  std::sort(entries.begin(), entries.end());
  entries.erase(std::unique(entries.begin(), entries.end()), entries.end());
  updates_.clear();
  for (const int32_t entry : entries) add_update(static_cast<size_t>(entry));
}

void BlockManager::check_integrity() const {
  pool_.check_integrity();
  std::vector<int32_t> ref_counts(pool_.num_blocks(), 0);
  std::vector<int32_t> last_row(pool_.num_blocks(), -1);
  if (null_block_ >= 0) ref_counts[null_block_] = 1;
  int32_t num_open = 0;
  for (int32_t row = 0; row < num_rows(); ++row) {
    if (!rows_[row].is_open) continue;
    ++num_open;
    const auto num_dropped = static_cast<size_t>(rows_[row].num_dropped_blocks);
    for (int32_t block_id : blocks(row).first(num_dropped)) {
      QUIRE_CHECK(block_id == null_block_, "row " << row << " left block " << block_id << " behind");
    }
    for (int32_t block_id : blocks(row).subspan(num_dropped)) {
      QUIRE_CHECK(block_id >= 0 && block_id < pool_.num_blocks(),
                  "row " << row << " holds block " << block_id);
      QUIRE_CHECK(last_row[block_id] != row, "row " << row << " holds block " << block_id << " twice");
      last_row[block_id] = row;
      ++ref_counts[block_id];
    }
  }
  QUIRE_CHECK(num_open == num_open_rows(), num_open << " open, " << num_open_rows() << " counted");
  for (int32_t id = 0; id < pool_.num_blocks(); ++id) {
    QUIRE_CHECK(ref_counts[id] == pool_.ref_count(id), "block " << id << " is in " << ref_counts[id]
                                                                << " rows and has " << pool_.ref_count(id)
                                                                << " holders");
  }
}

}  // namespace quire
