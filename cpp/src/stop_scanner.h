// The text of one sequence as its stop strings see it: follows the decoder byte by byte without keeping the
// text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "quire/stop_matcher.h"
#include "quire/token_table.h"

namespace quire {

// A run of byte tokens is either valid as a whole or one U+FFFD per byte, and which one may stay open for
// many tokens. So the scanner reads a run as valid text while it can be, from a saved state, and reads it
// anew once it is broken. A stop string that is complete in a run that is valid up to here counts at once:
// the sequence ends there, and so does the run.
class StopScanner {
 public:
  StopScanner(std::shared_ptr<const StopMatcher> matcher, bool is_first, DecoderKind kind,
              OpenText open_text);

  // Takes a contributing token; the two cuts as TextBoundary says.
  void push(const TokenTable& table, int32_t id, TextBoundary::Step step, bool can_stop);
  // Takes a token without text. can_cut: the text is at a boundary.
  void push_without_text(bool can_cut) { held_.push_back({place_.text_end, can_cut}); }

  // How many of the held ids may leave, given that the text is at a boundary now.
  uint32_t count_ready();
  void release(uint32_t num_ids);

  bool is_matched() const { return is_matched_; }
  // Bytes from the end of the released text to the match.
  uint64_t match_begin() const { return match_begin_ - released_end_; }
  uint64_t match_end() const { return match_end_ - released_end_; }

 private:
  struct Held {
    uint64_t text_end;  // of the id; final where can_cut
    bool can_cut;
  };
  struct Place {
    StopMatcher::State state = StopMatcher::kStart;
    uint64_t text_end = 0;  // bytes of text so far
    bool is_start = false;  // no text yet, in the prompt either
  };
  enum class ByteRun : uint8_t { kNone, kValid, kBroken };

  void feed(std::string_view text);
  void push_byte(uint8_t byte);
  void break_byte_run();
  void end_byte_run();

  std::shared_ptr<const StopMatcher> matcher_;
  Place place_;
  int32_t strip_left_ = 0;
  bool can_stop_ = false;

  Utf8Reader utf8_;
  bool is_open_character_ = false;  // kByteLevel: the next character began in the prompt
  ByteRun byte_run_ = ByteRun::kNone;
  uint32_t byte_run_size_ = 0;  // without those of the prompt
  Place before_byte_run_;

  bool is_matched_ = false;
  uint64_t match_begin_ = 0;
  uint64_t match_end_ = 0;

  std::vector<Held> held_;  // [first_, size) are held
  size_t first_ = 0;
  size_t next_ = 0;       // [first_, next_) end before anything that may become a stop string
  size_t ready_end_ = 0;  // the last cut in there
  uint64_t released_end_ = 0;
};

}  // namespace quire
