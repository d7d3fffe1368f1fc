#include "seal.h"

#include <sys/random.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "quire/error.h"

namespace quire::triton {

namespace {

Seal make_key() {
  Seal key{};
  while (getrandom(key.data(), sizeof(key), 0) != sizeof(key)) {  // so few bytes come at once or not at all
    if (errno != EINTR) throw Error(std::string("no random bytes for a key: ") + std::strerror(errno));
  }
  return key;
}

// https://www.aumasson.jp/siphash/siphash.pdf
class SipHash {
 public:
  explicit SipHash(const Seal& key)
      : v0_(key[0] ^ 0x736f6d6570736575),
        v1_(key[1] ^ 0x646f72616e646f6d ^ 0xee),  // 0xee: 128 bits
        v2_(key[0] ^ 0x6c7967656e657261),
        v3_(key[1] ^ 0x7465646279746573) {}

  void add(uint64_t word) {
    v3_ ^= word;
    rounds(2);
    v0_ ^= word;
  }

  Seal finish() {
    v2_ ^= 0xee;
    rounds(4);
    const uint64_t first = v0_ ^ v1_ ^ v2_ ^ v3_;
    v1_ ^= 0xdd;
    rounds(4);
    return {first, v0_ ^ v1_ ^ v2_ ^ v3_};
  }

 private:
  void rounds(int count) {
    for (int i = 0; i < count; ++i) {
      v0_ += v1_;
      v1_ = std::rotl(v1_, 13) ^ v0_;
      v0_ = std::rotl(v0_, 32);
      v2_ += v3_;
      v3_ = std::rotl(v3_, 16) ^ v2_;
      v0_ += v3_;
      v3_ = std::rotl(v3_, 21) ^ v0_;
      v2_ += v1_;
      v1_ = std::rotl(v1_, 17) ^ v2_;
      v2_ = std::rotl(v2_, 32);
    }
  }

  uint64_t v0_, v1_, v2_, v3_;
};

uint64_t word_at(std::string_view bytes, size_t offset) {
  uint64_t word = 0;
  std::memcpy(&word, bytes.data() + offset, std::min<size_t>(sizeof(word), bytes.size() - offset));
  return word;
}

}  // namespace

Seal seal_of(std::string_view bytes) {
  static const Seal key = make_key();
  SipHash hash(key);
  size_t offset = 0;
  for (; offset + 8 <= bytes.size(); offset += 8) hash.add(word_at(bytes, offset));
  const uint64_t end = offset < bytes.size() ? word_at(bytes, offset) : 0;
  hash.add(end | bytes.size() << 56);
  return hash.finish();
}

}  // namespace quire::triton
