#include "quire/block_pool.h"

#include <bit>

#include "quire/error.h"

namespace quire {
namespace {
constexpr int32_t kEmpty = -1;
}  // namespace

BlockPool::BlockPool(int32_t num_blocks) {
  if (num_blocks < 1) throw InvalidArgument("num_blocks", std::to_string(num_blocks), "at least 1");
  blocks_.resize(static_cast<size_t>(num_blocks) + 1);
  end_ = num_blocks;
  blocks_[end_].previous = blocks_[end_].next = end_;
  for (int32_t id = 0; id < num_blocks; ++id) link_between(id, blocks_[end_].previous, end_);
  num_free_ = num_blocks;
  table_.assign(std::bit_ceil(2 * static_cast<size_t>(num_blocks)), kEmpty);
  table_mask_ = table_.size() - 1;
}

void BlockPool::link_between(int32_t block_id, int32_t previous, int32_t next) {
  blocks_[block_id].previous = previous;
  blocks_[block_id].next = next;
  blocks_[previous].next = block_id;
  blocks_[next].previous = block_id;
}

void BlockPool::unlink(int32_t block_id) {
  const Block& block = blocks_[block_id];
  blocks_[block.previous].next = block.next;
  blocks_[block.next].previous = block.previous;
}

std::optional<int32_t> BlockPool::allocate() {
  if (num_free_ == 0) return std::nullopt;
  const int32_t block_id = blocks_[end_].next;
  unlink(block_id);
  --num_free_;
  if (blocks_[block_id].has_hash) forget(block_id);
  blocks_[block_id].ref_count = 1;
  return block_id;
}

void BlockPool::acquire(int32_t block_id) {
  Block& block = blocks_[block_id];
  if (block.ref_count == 0) {
    QUIRE_CHECK(block.has_hash, "block " << block_id << " is free and not cached");
    unlink(block_id);
    --num_free_;
  }
  ++block.ref_count;
}

void BlockPool::release(int32_t block_id) {
  Block& block = blocks_[block_id];
  QUIRE_CHECK(block.ref_count > 0, "block " << block_id << " is free already");
  if (--block.ref_count > 0) return;
  if (block.has_hash) {
    link_between(block_id, blocks_[end_].previous, end_);
  } else {
    link_between(block_id, end_, blocks_[end_].next);
  }
  ++num_free_;
}

size_t BlockPool::find_entry(const BlockHash& hash) const {
  size_t entry = home(hash);
  while (table_[entry] != kEmpty && !(blocks_[table_[entry]].hash == hash)) entry = (entry + 1) & table_mask_;
  return entry;
}

bool BlockPool::publish(int32_t block_id, const BlockHash& hash) {
  Block& block = blocks_[block_id];
  QUIRE_CHECK(block.ref_count > 0, "block " << block_id << " is free");
  if (block.has_hash) return block.hash == hash;
  const size_t entry = find_entry(hash);
  if (table_[entry] != kEmpty) return false;
  table_[entry] = block_id;
  block.hash = hash;
  block.has_hash = true;
  ++num_cached_;
  return true;
}

std::optional<int32_t> BlockPool::find(const BlockHash& hash) const {
  const int32_t block_id = table_[find_entry(hash)];
  return block_id == kEmpty ? std::nullopt : std::optional<int32_t>(block_id);
}

// Removes the entry and closes the gap: each later entry of the same probe run moves up if it may stand
// there, so that a look-up never meets an empty entry before its own.
void BlockPool::forget(int32_t block_id) {
  size_t gap = find_entry(blocks_[block_id].hash);
  for (size_t entry = (gap + 1) & table_mask_; table_[entry] != kEmpty; entry = (entry + 1) & table_mask_) {
    const size_t wanted = home(blocks_[table_[entry]].hash);
    if (((entry - wanted) & table_mask_) >= ((entry - gap) & table_mask_)) {
      table_[gap] = table_[entry];
      gap = entry;
    }
  }
  table_[gap] = kEmpty;
  blocks_[block_id].has_hash = false;
  --num_cached_;
}

void BlockPool::check_integrity() const {
  int32_t num_listed = 0;
  bool seen_cached = false;
  for (int32_t id = blocks_[end_].next; id != end_; id = blocks_[id].next) {
    QUIRE_CHECK(id >= 0 && id < num_blocks(), "free list holds " << id);
    QUIRE_CHECK(blocks_[id].ref_count == 0,
                "block " << id << " is free with " << blocks_[id].ref_count << " holders");
    QUIRE_CHECK(blocks_[blocks_[id].next].previous == id, "free list is broken after block " << id);
    QUIRE_CHECK(!seen_cached || blocks_[id].has_hash,
                "block " << id << " without a hash stands after a cached one");
    seen_cached = blocks_[id].has_hash;
    QUIRE_CHECK(++num_listed <= num_blocks(), "free list has a cycle");
  }
  QUIRE_CHECK(num_listed == num_free_, num_listed << " listed, " << num_free_ << " counted");
  int32_t num_used = 0;
  int32_t num_hashed = 0;
  for (int32_t id = 0; id < num_blocks(); ++id) {
    QUIRE_CHECK(blocks_[id].ref_count >= 0, "block " << id << " has " << blocks_[id].ref_count << " holders");
    num_used += blocks_[id].ref_count > 0;
    if (!blocks_[id].has_hash) continue;
    ++num_hashed;
    QUIRE_CHECK(find(blocks_[id].hash) == id, "block " << id << " is not found by its hash");
  }
  QUIRE_CHECK(num_used + num_free_ == num_blocks(),
              num_used << " used, " << num_free_ << " free of " << num_blocks());
  QUIRE_CHECK(num_hashed == num_cached_, num_hashed << " with a hash, " << num_cached_ << " counted");
  int32_t num_entries = 0;
  for (int32_t id : table_) num_entries += id != kEmpty;
  QUIRE_CHECK(num_entries == num_cached_, num_entries << " entries, " << num_cached_ << " cached");
}

}  // namespace quire
