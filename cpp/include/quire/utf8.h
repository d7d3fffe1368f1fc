// UTF-8, byte by byte, as WHATWG and Rust's String::from_utf8_lossy read it: each maximal invalid part is one
// U+FFFD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace quire {

constexpr std::string_view kReplacementChar = "\xEF\xBF\xBD";  // U+FFFD

class Utf8Reader {
 public:
  // Takes one byte. Calls emit(std::string_view character, bool is_valid) for each character that is known
  // now: none (inside a character), one, or two (a broken character's U+FFFD, then the byte that broke it).
  template <typename Emit>
  void push(uint8_t byte, Emit&& emit) {
    if (num_missing_ > 0) {
      if (byte >= lowest_ && byte <= highest_) {
        pending_[num_pending_++] = static_cast<char>(byte);
        lowest_ = 0x80;
        highest_ = 0xBF;
        if (--num_missing_ == 0) {
          emit(std::string_view(pending_, num_pending_), true);
          num_pending_ = 0;
        }
        return;
      }
      reset();
      emit(kReplacementChar, false);
    }
    if (byte < 0x80) {
      const char ascii = static_cast<char>(byte);
      emit(std::string_view(&ascii, 1), true);
    } else if (byte >= 0xC2 && byte <= 0xF4) {
      start(byte);
    } else {
      emit(kReplacementChar, false);
    }
  }

  // The text ends here: an unfinished character is one U+FFFD.
  template <typename Emit>
  void finish(Emit&& emit) {
    if (num_missing_ > 0) {
      reset();
      emit(kReplacementChar, false);
    }
  }

  bool is_inside_character() const { return num_missing_ > 0; }
  std::string_view unfinished() const { return {pending_, num_pending_}; }
  void reset() { num_missing_ = num_pending_ = 0; }

 private:
  void start(uint8_t lead) {
    num_missing_ = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
    // The second byte's range excludes overlong forms, surrogates, and code points past U+10FFFF.
    lowest_ = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    highest_ = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    pending_[0] = static_cast<char>(lead);
    num_pending_ = 1;
  }

  char pending_[4] = {};  // bytes of the unfinished character
  uint8_t num_pending_ = 0;
  uint8_t num_missing_ = 0;
  uint8_t lowest_ = 0x80;
  uint8_t highest_ = 0xBF;
};

inline bool is_valid_utf8(std::string_view bytes) {
  Utf8Reader reader;
  bool is_valid = true;
  for (char byte : bytes) {
    reader.push(static_cast<uint8_t>(byte), [&](std::string_view, bool valid) { is_valid &= valid; });
  }
  return is_valid && !reader.is_inside_character();
}

}  // namespace quire
