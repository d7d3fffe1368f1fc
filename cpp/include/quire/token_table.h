// What each token id contributes to the text, and how ids become text: one table per tokenizer, immutable.
//
// Text is defined as Hugging Face `tokenizers` defines it: decode(prompt + output) minus decode(prompt), for a prompt
// that ends at a complete character. So a leading space is kept after a prompt that has text, and dropped by
// decoders that drop it when the prompt has none (`is_first`).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace quire {

enum class DecoderKind : uint8_t {
  kByteLevel = 0,     // bytes of all tokens joined, then UTF-8 with U+FFFD for each maximal invalid part
  kByteFallback = 1,  // strings joined; a maximal run of byte tokens <0xXX> is UTF-8 as a whole or one U+FFFD per byte
  kJoined = 2,        // strings joined by `separator` (word-level and other models without a decoder)
};

enum TokenFlags : uint8_t {
  kTokenNone = 0,
  kTokenSpecial = 1,  // dropped from text when skip_special_tokens
  kTokenByte = 2,     // a byte token of kByteFallback; its text is that one byte
  kTokenUnknown = 4,  // no token has this id: contributes nothing, not even a separator
};

class TokenTable {
 public:
  TokenTable() = default;
  // texts[id]: what the token stands for, after replacements such as U+2581 -> space. flags[id]: TokenFlags.
  // separator: kJoined only. strip_left: how many leading spaces of the whole text the decoder drops.
  TokenTable(DecoderKind kind, const std::vector<std::string>& texts, std::vector<uint8_t> flags,
             std::string separator, int32_t strip_left);

  int32_t size() const { return static_cast<int32_t>(flags_.size()); }
  DecoderKind kind() const { return kind_; }
  std::string_view text(int32_t id) const;  // "" for ids outside the table
  uint8_t flags(int32_t id) const;          // kTokenUnknown for ids outside the table

  // Whether the token takes part in the text at all under this setting.
  bool contributes(int32_t id, bool skip_special_tokens) const;

  // Text of a run of ids that starts and ends at a boundary (see TextBoundary). A pure function.
  //   is_first: nothing before this run took part in the text.
  //   trim: bytes dropped from the end of the run's text (a stop string).
  std::string decode(std::span<const int32_t> ids, bool is_first, int32_t trim, bool skip_special_tokens) const;
  // The same, appended to `out` without a fresh allocation.
  void decode_to(std::span<const int32_t> ids, bool is_first, int32_t trim, bool skip_special_tokens,
                 std::string& out) const;

  std::string serialize() const;
  static TokenTable deserialize(std::string_view bytes);  // throws InvalidArgument on malformed bytes

 private:
  DecoderKind kind_ = DecoderKind::kByteLevel;
  std::string separator_;
  int32_t strip_left_ = 0;
  std::vector<uint32_t> offsets_;  // [size + 1] into bytes_
  std::string bytes_;
  std::vector<uint8_t> flags_;
};

// Follows one sequence and says whether its text could be cut after the ids seen so far, so that texts of the two
// sides decode on their own. False inside a UTF-8 character, and inside a run of byte tokens.
class TextBoundary {
 public:
  // Takes the next id; returns whether the text may be cut *before* this id, i.e. the ids held so far form a
  // complete run. (A byte run is known to be complete only when the next token is not a byte.)
  // `contributing` tokens only; the caller skips others.
  struct Step {
    bool cut_before;  // the held ids without this one form a complete run
    bool cut_after;   // the held ids with this one form a complete run
  };
  Step push(const TokenTable& table, int32_t id);

 private:
  uint8_t pending_[4] = {};  // bytes of an unfinished character (kByteLevel)
  uint8_t num_pending_ = 0;
  bool in_byte_run_ = false;  // kByteFallback
};

}  // namespace quire
