#include "quire/block_hash.h"

#include <bit>
#include <cstring>
#include <vector>

namespace quire {
namespace {

// Odd, with about as many ones as zeros, and no short pattern.
constexpr uint64_t kLowMultiplier = 0x9D3A4C7FB16E528BULL;
constexpr uint64_t kHighMultiplier = 0xC5B29E1463F7A86DULL;

// Both halves of the 128-bit product: every input bit reaches every output bit.
inline uint64_t multiply_fold(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// One word into both lanes. The lanes then exchange through an invertible step, so a pair of inputs that
// agrees in one lane still differs in both afterwards.
inline void mix(BlockHash& hash, uint64_t word) {
  const uint64_t low = multiply_fold(hash.low ^ word, kLowMultiplier);
  const uint64_t high = multiply_fold(hash.high + std::rotl(word, 32), kHighMultiplier);
  hash.low = low + std::rotl(high, 23);
  hash.high = high ^ hash.low;
}

}  // namespace

BlockHash root_hash(uint64_t salt) {
  BlockHash hash{0x71F0A3C8D25E9B46ULL, 0x2B8D64E79A1FC035ULL};
  mix(hash, salt);
  mix(hash, ~salt);
  return hash;
}

BlockHash salted_root(const BlockHash& root, std::string_view cache_salt) {
  // -1 is no token id: no block of tokens has the hash of a salt.
  std::vector<int32_t> words(2 + (cache_salt.size() + 3) / 4);
  words[0] = -1;
  words[1] = static_cast<int32_t>(cache_salt.size());
  if (!cache_salt.empty()) std::memcpy(words.data() + 2, cache_salt.data(), cache_salt.size());
  return hash_block(root, words);
}

BlockHash hash_block(const BlockHash& parent, std::span<const int32_t> token_ids) {
  BlockHash hash = parent;
  size_t i = 0;
  for (; i + 2 <= token_ids.size(); i += 2) {
    mix(hash, static_cast<uint64_t>(static_cast<uint32_t>(token_ids[i])) |
                  static_cast<uint64_t>(static_cast<uint32_t>(token_ids[i + 1])) << 32);
  }
  if (i < token_ids.size()) mix(hash, static_cast<uint32_t>(token_ids[i]));
  mix(hash, token_ids.size());
  return hash;
}

}  // namespace quire
