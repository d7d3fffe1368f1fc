// What each token id contributes to the text, and how ids become text: one table per tokenizer, immutable.
//
// Text is defined as Hugging Face `tokenizers` defines it: decode(prompt + output) minus decode(prompt), for
// a prompt that ends at a complete character. So a leading space is kept after a prompt that has text, and
// dropped by decoders that drop it when the prompt has none (`is_first`).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/utf8.h"

namespace quire {

enum class DecoderKind : uint8_t {
  kByteLevel = 0,  // bytes of all tokens joined, then UTF-8 with U+FFFD for each maximal invalid part
  kByteFallback =
      1,  // strings joined; a maximal run of byte tokens <0xXX> is UTF-8 as a whole or one U+FFFD per byte
  kJoined = 2,  // strings joined by `separator` (word-level and other models without a decoder)
};

enum TokenFlags : uint8_t {
  kTokenNone = 0,
  kTokenSpecial = 1,  // dropped from text when skip_special_tokens
  kTokenByte = 2,     // a byte token of kByteFallback; its text is that one byte
  kTokenUnknown = 4,  // no token has this id: contributes nothing, not even a separator
};

// Values of strip_left: what the decoder drops at the start of the whole text.
constexpr int32_t kStripNothing = 0;
constexpr int32_t kStripOneSpace = 1;  // one leading space: tokenizers' Strip(" ", 1, 0)
constexpr int32_t kStripFirstToken =
    -1;  // every space of the first token: tokenizers' Metaspace (prepend not "never")

class TokenTable {
 public:
  TokenTable() = default;
  // texts[id]: what the token stands for, after replacements such as U+2581 -> space; valid UTF-8 unless
  // kByteLevel or a byte token. flags[id]: TokenFlags. separator: kJoined only. strip_left: one of the above;
  // kJoined strips nothing. Throws InvalidArgument.
  TokenTable(DecoderKind kind, const std::vector<std::string>& texts, std::vector<uint8_t> flags,
             std::string separator, int32_t strip_left);

  int32_t size() const { return static_cast<int32_t>(flags_.size()); }
  DecoderKind kind() const { return kind_; }
  const std::string& separator() const { return separator_; }
  int32_t strip_left() const { return strip_left_; }
  std::string_view text(int32_t id) const {  // "" for ids outside the table
    return contains(id) ? std::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id])
                        : std::string_view();
  }
  uint8_t flags(int32_t id) const {  // kTokenUnknown for ids outside the table
    return contains(id) ? flags_[id] & ~kTokenComplete : static_cast<uint8_t>(kTokenUnknown);
  }

  // Whether the token takes part in the text at all under this setting.
  bool contributes(int32_t id, bool skip_special_tokens) const {
    const uint8_t dropped = skip_special_tokens ? kTokenUnknown | kTokenSpecial : kTokenUnknown;
    return contains(id) && (flags_[id] & dropped) == 0;
  }
  // Whether what follows a contributing token is no longer the start of the text. An empty text does not end
  // the start where the start is a matter of characters.
  bool ends_start(int32_t id) const {
    return kind_ == DecoderKind::kJoined || strip_left_ == kStripFirstToken || !text(id).empty();
  }
  // Whether a token's text can be cut off from its neighbours on both sides when it stands outside a
  // character and outside a run of byte tokens.
  bool is_complete(int32_t id) const { return !contains(id) || (flags_[id] & kTokenComplete) != 0; }

  // Text of a run of ids that starts and ends at a boundary (see TextBoundary). A pure function.
  //   is_first: nothing before this run took part in the text.
  //   trim: bytes dropped from the end of the run's text (a stop string).
  std::string decode(std::span<const int32_t> ids, bool is_first, int32_t trim,
                     bool skip_special_tokens) const;
  // The same, appended to `out` without a fresh allocation.
  void decode_to(std::span<const int32_t> ids, bool is_first, int32_t trim, bool skip_special_tokens,
                 std::string& out) const;

  std::string serialize() const;
  static TokenTable deserialize(std::string_view bytes);  // throws InvalidArgument on malformed bytes

 private:
  static constexpr uint8_t kTokenComplete =
      0x80;  // is_complete(), beside the flags so that a step reads one byte

  bool contains(int32_t id) const { return static_cast<uint32_t>(id) < flags_.size(); }
  void finish_building();

  DecoderKind kind_ = DecoderKind::kByteLevel;
  std::string separator_;
  int32_t strip_left_ = kStripNothing;
  std::vector<uint32_t> offsets_;  // [size + 1] into bytes_
  std::string bytes_;
  std::vector<uint8_t> flags_;
};

// Follows one sequence and says whether its text could be cut after the ids seen so far, so that texts of the
// two sides decode on their own. False inside a UTF-8 character, and inside a run of byte tokens.
class TextBoundary {
 public:
  // Takes the next id, a contributing one. (A byte run is known to be complete only when the next token is
  // not a byte.)
  struct Step {
    bool cut_before;  // the ids so far without this one form complete runs
    bool cut_after;   // the ids so far with this one form complete runs
  };
  Step push(const TokenTable& table, int32_t id) {
    if (table.is_complete(id) && !utf8_.is_inside_character()) {
      in_byte_run_ = false;
      return {true, true};
    }
    return push_incomplete(table, id);
  }

 private:
  Step push_incomplete(const TokenTable& table, int32_t id);

  Utf8Reader utf8_;           // kByteLevel
  bool in_byte_run_ = false;  // kByteFallback
};

}  // namespace quire
