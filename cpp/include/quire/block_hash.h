// Identity of a full KV block: a 128-bit hash of its tokens and, through its parent's hash, of everything
// before them.
//
// Two blocks with one hash are taken to hold the same KV, without comparing tokens. Among n live hashes a
// false match has a chance of about n^2 / 2^129: with a billion blocks, 1 in 10^20. That is far below the
// rate of undetected memory errors, so wrong tokens from a collision are no case to handle. The hash is not
// cryptographic; callers that serve strangers start the chain from a secret salt, so that no one can prepare
// a collision.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace quire {

struct BlockHash {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const BlockHash&) const = default;
};

// The parent of a first block. Different salts share no blocks.
BlockHash root_hash(uint64_t salt);

// The parent of a first block among requests of one cache_salt, which share blocks with no others.
BlockHash salted_root(const BlockHash& root, std::string_view cache_salt);

// token_ids: one full block.
BlockHash hash_block(const BlockHash& parent, std::span<const int32_t> token_ids);

}  // namespace quire
