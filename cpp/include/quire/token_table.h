// What each token id contributes to the text, and how ids become text: one table per tokenizer, immutable.
//
// Text is defined as Hugging Face `tokenizers` defines it: decode(prompt + output) minus decode(prompt). So a
// leading space is kept after a prompt that has text, and dropped by decoders that drop it when the prompt
// has none (`is_first`). A prompt may end inside a character (OpenText): the whole character belongs to the
// output when the output completes it; otherwise its U+FFFD is the prompt's.
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
  kJoined = 2,     // strings joined by `separator` (word-level and other models without a decoder)
  kWordPiece = 3,  // strings joined; the text's first token has a text of its own (no space before it)
};

enum TokenFlags : uint8_t {
  kTokenSpecial = 1,  // dropped from text when skip_special_tokens
  kTokenByte = 2,     // a byte token of kByteFallback; its text is that one byte
  kTokenUnknown = 4,  // no token has this id: contributes nothing, not even a separator
};

// Values of strip_left: what the decoder drops at the start of the whole text.
constexpr int32_t kStripNothing = 0;
constexpr int32_t kStripOneSpace = 1;  // one leading space: tokenizers' Strip(" ", 1, 0)
constexpr int32_t kStripFirstToken =
    -1;  // every space of the first token: tokenizers' Metaspace (prepend not "never")

// What a prompt leaves open at its end: an unfinished character, or a run of byte tokens that is no UTF-8
// whatever follows. It fits a word, so that it travels like a flag.
class OpenText {
 public:
  OpenText() = default;
  explicit OpenText(uint32_t bits) : bits_(bits) {}
  // At most 3 bytes; kByteFallback: of a run that is valid so far.
  explicit OpenText(std::string_view unfinished) : bits_(static_cast<uint32_t>(unfinished.size())) {
    for (size_t i = 0; i < unfinished.size(); ++i) {
      bits_ |= static_cast<uint32_t>(static_cast<uint8_t>(unfinished[i])) << (8 * (i + 1));
    }
  }
  static OpenText broken_run() { return OpenText(kBrokenRun); }

  uint32_t bits() const { return bits_; }
  bool is_nothing() const { return bits_ == 0; }
  bool is_broken_run() const { return (bits_ & kBrokenRun) != 0; }
  uint32_t num_bytes() const { return bits_ & 3; }
  uint8_t byte(uint32_t i) const { return static_cast<uint8_t>(bits_ >> (8 * (i + 1))); }
  void start(Utf8Reader& utf8) const {
    for (uint32_t i = 0; i < num_bytes(); ++i) utf8.push(byte(i), [](std::string_view, bool) {});
  }

 private:
  static constexpr uint32_t kBrokenRun = 4;
  uint32_t bits_ = 0;  // number of bytes; kBrokenRun; the bytes from bit 8 on
};

class TokenTable {
 public:
  TokenTable() = default;
  // texts[id]: what the token stands for, after replacements such as U+2581 -> space; valid UTF-8 unless
  // kByteLevel or a byte token. kWordPiece: twice as many, texts[size + id] is what the token stands for as
  // the first of the text. flags[id]: TokenFlags. separator: kJoined only. strip_left: one of the above;
  // kJoined and kWordPiece strip nothing. Throws InvalidArgument.
  TokenTable(DecoderKind kind, const std::vector<std::string>& texts, std::vector<uint8_t> flags,
             std::string separator, int32_t strip_left);

  int32_t size() const { return static_cast<int32_t>(flags_.size()); }
  DecoderKind kind() const { return kind_; }
  const std::string& separator() const { return separator_; }
  int32_t strip_left() const { return strip_left_; }
  std::string_view text(int32_t id) const {  // "" for ids outside the table
    return contains(id) ? text_at(id) : std::string_view();
  }
  std::string_view first_text(int32_t id) const {  // as the first token of the text
    return contains(id) ? text_at(kind_ == DecoderKind::kWordPiece ? flags_.size() + id : id)
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
    return kind_ == DecoderKind::kJoined || kind_ == DecoderKind::kWordPiece ||
           strip_left_ == kStripFirstToken || !text(id).empty();
  }
  // Whether a token's text can be cut off from its neighbours on both sides when it stands outside a
  // character and outside a run of byte tokens.
  bool is_complete(int32_t id) const { return !contains(id) || (flags_[id] & kTokenComplete) != 0; }

  // The special token of this text; -1: there is none.
  int32_t special_id(std::string_view text) const;

  // Text of a run of ids that starts and ends at a boundary (see TextBoundary). A pure function.
  //   is_first: nothing before this run took part in the text.
  //   trim: bytes dropped from the end of the run's text (a stop string).
  //   open_text: what the prompt left open, for the first run after it.
  std::string decode(std::span<const int32_t> ids, bool is_first, int32_t trim, bool skip_special_tokens,
                     OpenText open_text = {}) const;
  // Appends the text to `out`, without a fresh allocation.
  void decode_to(std::span<const int32_t> ids, bool is_first, int32_t trim, bool skip_special_tokens,
                 std::string& out, OpenText open_text = {}) const;
  // What `ids`, a prompt, leave open.
  OpenText open_text(std::span<const int32_t> ids, bool skip_special_tokens) const;

  std::string serialize() const;
  static TokenTable deserialize(std::string_view bytes);  // throws InvalidArgument on malformed bytes

 private:
  static constexpr uint8_t kTokenComplete =
      0x80;  // is_complete(), beside the flags so that a step reads one byte

  bool contains(int32_t id) const { return static_cast<uint32_t>(id) < flags_.size(); }
  size_t num_texts() const { return (kind_ == DecoderKind::kWordPiece ? 2 : 1) * flags_.size(); }
  std::string_view text_at(size_t i) const {
    return std::string_view(bytes_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  void finish_building();

  DecoderKind kind_ = DecoderKind::kByteLevel;
  std::string separator_;
  int32_t strip_left_ = kStripNothing;
  std::vector<uint32_t> offsets_;  // [num_texts + 1] into bytes_
  std::string bytes_;
  std::vector<uint8_t> flags_;
  std::vector<int32_t> special_ids_;  // by their texts
};

// Follows one sequence and says whether its text could be cut after the ids seen so far, so that texts of the
// two sides decode on their own. False inside a UTF-8 character, and inside a run of byte tokens.
class TextBoundary {
 public:
  TextBoundary(DecoderKind kind, OpenText open_text) {
    if (kind == DecoderKind::kByteLevel) open_text.start(utf8_);
    if (kind == DecoderKind::kByteFallback) in_byte_run_ = !open_text.is_nothing();
  }

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
