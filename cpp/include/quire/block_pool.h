// Which KV blocks are held. Knows ids, reference counts and hashes; knows no requests.
//
// A block is in use (ref_count > 0), or on the free list. A free block that has a hash is still findable and
// keeps its contents until it is taken for something else; the list's order is the order of taking:
//
//     front: blocks without a hash | cached blocks, longest unused first :back
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "quire/block_hash.h"

namespace quire {

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  int32_t num_blocks() const { return static_cast<int32_t>(blocks_.size()) - 1; }
  int32_t num_free() const { return num_free_; }  // cached but unreferenced blocks included
  int32_t num_cached() const { return num_cached_; }
  int32_t ref_count(int32_t block_id) const { return blocks_[block_id].ref_count; }

  // Takes the front of the free list with one reference; a hash that it had is forgotten. Empty when none is
  // free.
  std::optional<int32_t> allocate();
  // One more holder of a block that find() returned; takes it off the free list if it had none.
  void acquire(int32_t block_id);
  // One holder less. The last one puts the block on the free list.
  void release(int32_t block_id);

  // Makes a block that is in use findable. A hash names at most one block, and a block keeps its first hash:
  // when the hash is taken already (two requests computed the same prefix side by side), the block stays
  // private. Returns whether the hash names this block now.
  bool publish(int32_t block_id, const BlockHash& hash);
  std::optional<int32_t> find(const BlockHash& hash) const;

  // Free list, counts, and hash table agree. Throws InternalError.
  void check_integrity() const;

 private:
  struct Block {
    int32_t ref_count = 0;
    int32_t previous = 0;  // on the free list, while ref_count is 0
    int32_t next = 0;
    bool has_hash = false;
    BlockHash hash;
  };

  void unlink(int32_t block_id);
  void link_between(int32_t block_id, int32_t previous, int32_t next);

  size_t home(const BlockHash& hash) const { return hash.low & table_mask_; }
  size_t find_entry(const BlockHash& hash) const;  // the hash's entry, or the empty one where it would go
  void forget(int32_t block_id);

  std::vector<Block> blocks_;  // [num_blocks + 1]; the last one is the free list's head and tail
  int32_t end_ = 0;            // its index
  int32_t num_free_ = 0;
  int32_t num_cached_ = 0;
  // hash -> block id: open addressing with linear probing, at most half full, so no operation allocates.
  std::vector<int32_t> table_;  // kEmpty or a block id
  size_t table_mask_ = 0;
};

}  // namespace quire
