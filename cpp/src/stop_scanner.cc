#include "stop_scanner.h"

#include <algorithm>
#include <utility>

#include "quire/error.h"

namespace quire {

StopScanner::StopScanner(std::shared_ptr<const StopMatcher> matcher, bool is_first, DecoderKind kind,
                         OpenText open_text)
    : matcher_(std::move(matcher)) {
  place_.is_start = is_first;
  open_text.start(utf8_);
  if (kind == DecoderKind::kByteLevel) {
    is_open_character_ = utf8_.is_inside_character();
  } else if (!open_text.is_nothing()) {
    byte_run_ = open_text.is_broken_run() ? ByteRun::kBroken : ByteRun::kValid;
    before_byte_run_ = place_;
  }
}

void StopScanner::push(const TokenTable& table, int32_t id, TextBoundary::Step step, bool can_stop) {
  can_stop_ = can_stop;
  strip_left_ = table.strip_left();
  const std::string_view text = table.text(id);
  const bool is_byte = (table.flags(id) & kTokenByte) != 0;
  if (byte_run_ != ByteRun::kNone && !is_byte) {
    end_byte_run();
    if (first_ < held_.size()) held_.back() = {place_.text_end, step.cut_before};
  }
  if (is_byte) {
    push_byte(static_cast<uint8_t>(text.front()));
  } else if (table.kind() == DecoderKind::kByteLevel &&
             (utf8_.is_inside_character() || !table.is_complete(id))) {
    for (char byte : text) {
      utf8_.push(static_cast<uint8_t>(byte), [this](std::string_view character, bool) {
        if (!is_open_character_ || character != kReplacementChar) feed(character);
        is_open_character_ = false;
      });
    }
  } else if (place_.is_start && strip_left_ == kStripFirstToken) {
    for (char byte : text) {
      if (byte != ' ') feed(std::string_view(&byte, 1));
    }
  } else {
    if (!place_.is_start) feed(table.separator());
    feed(place_.is_start ? table.first_text(id) : text);
  }
  if (table.ends_start(id) && byte_run_ == ByteRun::kNone) place_.is_start = false;
  held_.push_back({place_.text_end, step.cut_after});
}

void StopScanner::feed(std::string_view text) {
  if (place_.is_start && strip_left_ == kStripOneSpace && !text.empty()) {
    place_.is_start = false;
    if (text.front() == ' ') text.remove_prefix(1);
  }
  StopMatcher::State state = place_.state;
  for (size_t i = 0; i < text.size(); ++i) {
    state = matcher_->next(state, static_cast<uint8_t>(text[i]));
    if (state == StopMatcher::kStart || !can_stop_ || is_matched_) continue;
    if (const uint32_t length = matcher_->match_length(state); length > 0) {
      is_matched_ = true;
      match_end_ = place_.text_end + i + 1;
      match_begin_ = match_end_ - length;
    }
  }
  place_.state = state;
  place_.text_end += text.size();
}

void StopScanner::push_byte(uint8_t byte) {
  if (byte_run_ == ByteRun::kNone) {
    byte_run_ = ByteRun::kValid;
    byte_run_size_ = 0;
    before_byte_run_ = place_;
    utf8_.reset();
  }
  ++byte_run_size_;
  if (byte_run_ == ByteRun::kBroken) {
    feed(kReplacementChar);
    return;
  }
  bool is_broken = false;
  utf8_.push(byte, [&](std::string_view character, bool is_valid) {
    is_broken |= !is_valid;
    if (!is_broken) feed(character);
  });
  if (is_broken) break_byte_run();
}

void StopScanner::break_byte_run() {
  byte_run_ = ByteRun::kBroken;
  place_ = before_byte_run_;
  for (uint32_t i = 0; i < byte_run_size_; ++i) feed(kReplacementChar);
}

void StopScanner::end_byte_run() {
  if (byte_run_ == ByteRun::kValid && utf8_.is_inside_character()) break_byte_run();
  utf8_.reset();
  byte_run_ = ByteRun::kNone;
  place_.is_start = false;
}

uint32_t StopScanner::count_ready() {
  const uint64_t safe_end = place_.text_end - matcher_->hold_length(place_.state);
  for (; next_ < held_.size() && held_[next_].text_end <= safe_end; ++next_) {
    if (held_[next_].can_cut) ready_end_ = next_ + 1;
  }
  return static_cast<uint32_t>(ready_end_ - std::min(ready_end_, first_));
}

void StopScanner::release(uint32_t num_ids) {
  if (num_ids == 0) return;
  first_ += num_ids;
  released_end_ = held_[first_ - 1].text_end;
  // Forget released ids once they outnumber the held ones: constant work per id.
  if (2 * first_ >= held_.size()) {
    held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(first_));
    next_ -= std::min(next_, first_);
    ready_end_ -= std::min(ready_end_, first_);
    first_ = 0;
  }
}

}  // namespace quire
