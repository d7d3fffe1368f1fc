#include "quire/token_table.h"

#include <algorithm>
#include <limits>

#include "quire/error.h"
#include "wire_bytes.h"

namespace quire {

TokenTable::TokenTable(DecoderKind kind, const std::vector<std::string>& texts, std::vector<uint8_t> flags,
                       std::string separator, int32_t strip_left)
    : kind_(kind), separator_(std::move(separator)), strip_left_(strip_left), flags_(std::move(flags)) {
  if (texts.size() != num_texts()) {
    throw InvalidArgument("flags", std::to_string(flags_.size()) + " values",
                          kind_ == DecoderKind::kWordPiece
                              ? "half of " + std::to_string(texts.size()) + ", one per two texts"
                              : std::to_string(texts.size()) + ", one per text");
  }
  size_t num_bytes = 0;
  for (const std::string& text : texts) num_bytes += text.size();
  if (num_bytes > std::numeric_limits<uint32_t>::max()) {
    throw InvalidArgument("texts", std::to_string(num_bytes) + " bytes", "less than 4 GiB in all");
  }
  bytes_.reserve(num_bytes);
  offsets_.reserve(texts.size() + 1);
  offsets_.push_back(0);
  for (const std::string& text : texts) {
    bytes_ += text;
    offsets_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
  finish_building();
}

// Checks what the constructor and deserialize() have in common, and marks the complete tokens.
void TokenTable::finish_building() {
  if (kind_ > DecoderKind::kWordPiece) {
    throw InvalidArgument("kind", std::to_string(static_cast<int>(kind_)),
                          "0 (byte level), 1 (byte fallback), 2 (joined), 3 (word piece)");
  }
  if (strip_left_ < kStripFirstToken || strip_left_ > kStripOneSpace) {
    throw InvalidArgument("strip_left", std::to_string(strip_left_),
                          "0 (nothing), 1 (one space), -1 (the first token's spaces)");
  }
  if (kind_ >= DecoderKind::kJoined && strip_left_ != kStripNothing) {
    throw InvalidArgument("strip_left", std::to_string(strip_left_), "0 for joined tokens and word pieces");
  }
  const auto is_byte = [](uint8_t flags) { return (flags & kTokenByte) != 0; };
  if (strip_left_ == kStripFirstToken && std::any_of(flags_.begin(), flags_.end(), is_byte)) {
    // A byte token's space would be stripped out of the run that it is part of.
    throw InvalidArgument("strip_left", "-1 with byte tokens", "0 or 1, or no byte tokens");
  }
  if (kind_ != DecoderKind::kJoined && !separator_.empty()) {
    throw InvalidArgument("separator", "\"" + separator_ + "\"", "\"\" unless tokens are joined");
  }
  if (!is_valid_utf8(separator_)) throw InvalidArgument("separator", "invalid UTF-8", "UTF-8");
  for (int32_t id = 0; id < size(); ++id) {
    const auto field = [id] { return "texts[" + std::to_string(id) + "]"; };
    if (flags_[id] & ~(kTokenSpecial | kTokenByte | kTokenUnknown)) {
      throw InvalidArgument("flags[" + std::to_string(id) + "]", std::to_string(flags_[id]),
                            "a sum of 1 (special), 2 (byte), 4 (unknown)");
    }
    const bool is_byte = (flags_[id] & kTokenByte) != 0;
    if (is_byte && kind_ != DecoderKind::kByteFallback) {
      throw InvalidArgument("flags[" + std::to_string(id) + "]", "2 (byte)",
                            "byte tokens only with byte fallback");
    }
    if (is_byte && text(id).size() != 1) {
      throw InvalidArgument(field(), std::to_string(text(id).size()) + " bytes", "1 byte for a byte token");
    }
    const bool is_valid = !is_byte && is_valid_utf8(text(id)) &&
                          (kind_ != DecoderKind::kWordPiece || is_valid_utf8(first_text(id)));
    if (!is_valid && !is_byte && kind_ != DecoderKind::kByteLevel) {
      throw InvalidArgument(field(), "invalid UTF-8", "UTF-8");
    }
    if (is_valid) flags_[id] |= kTokenComplete;
    if ((flags_[id] & kTokenSpecial) != 0) special_ids_.push_back(id);
  }
  std::stable_sort(special_ids_.begin(), special_ids_.end(),
                   [this](int32_t a, int32_t b) { return text(a) < text(b); });
}

int32_t TokenTable::special_id(std::string_view text) const {
  const auto is_before = [this](int32_t id, std::string_view other) { return this->text(id) < other; };
  const auto found = std::lower_bound(special_ids_.begin(), special_ids_.end(), text, is_before);
  return found != special_ids_.end() && this->text(*found) == text ? *found : -1;
}

std::string TokenTable::decode(std::span<const int32_t> ids, bool is_first, int32_t trim,
                               bool skip_special_tokens, OpenText open_text) const {
  std::string out;
  decode_to(ids, is_first, trim, skip_special_tokens, out, open_text);
  return out;
}

void TokenTable::decode_to(std::span<const int32_t> ids, bool is_first, int32_t trim,
                           bool skip_special_tokens, std::string& out, OpenText open_text) const {
  const size_t begin = out.size();
  bool is_start = is_first;
  Utf8Reader utf8;                 // kByteLevel
  bool is_open_character = false;  // the next one began in the prompt
  const auto append = [&](std::string_view character, bool) {
    if (!is_open_character || character != kReplacementChar) out += character;
    is_open_character = false;
  };
  size_t byte_run_size = 0;   // kByteFallback: the last so many bytes of `out` come from byte tokens
  size_t num_open_bytes = 0;  // of them in the prompt
  bool is_run_broken = open_text.is_broken_run();
  const auto end_byte_run = [&] {
    const size_t run_begin = out.size() - byte_run_size;
    if (is_run_broken || !is_valid_utf8(std::string_view(out).substr(run_begin))) {
      out.resize(run_begin);
      for (size_t i = num_open_bytes; i < byte_run_size; ++i) out += kReplacementChar;
    }
    byte_run_size = num_open_bytes = 0;
    is_run_broken = false;
  };
  if (kind_ == DecoderKind::kByteLevel) {
    open_text.start(utf8);
    is_open_character = utf8.is_inside_character();
  } else if (kind_ == DecoderKind::kByteFallback) {
    for (uint32_t i = 0; i < open_text.num_bytes(); ++i) out += static_cast<char>(open_text.byte(i));
    byte_run_size = num_open_bytes = open_text.num_bytes();
  }

  for (int32_t id : ids) {
    if (!contributes(id, skip_special_tokens)) continue;
    const std::string_view piece = text(id);
    size_t piece_begin = out.size();
    switch (kind_) {
      case DecoderKind::kByteLevel:
        if (is_complete(id) && !utf8.is_inside_character()) {
          out += piece;
        } else {
          for (char byte : piece) utf8.push(static_cast<uint8_t>(byte), append);
        }
        break;
      case DecoderKind::kByteFallback:
        if (flags_[id] & kTokenByte) {
          ++byte_run_size;
        } else if (byte_run_size > 0 || is_run_broken) {
          end_byte_run();
        }
        piece_begin = out.size();
        out += piece;
        break;
      case DecoderKind::kJoined:
        if (!is_start) out += separator_;
        out += piece;
        break;
      case DecoderKind::kWordPiece:
        out += is_start ? first_text(id) : piece;
        break;
    }
    if (is_start && strip_left_ == kStripFirstToken) {
      out.erase(std::remove(out.begin() + static_cast<std::ptrdiff_t>(piece_begin), out.end(), ' '),
                out.end());
    }
    is_start = is_start && !ends_start(id);
  }
  utf8.finish(append);
  if (byte_run_size > 0) end_byte_run();
  if (is_first && strip_left_ == kStripOneSpace && out.size() > begin && out[begin] == ' ')
    out.erase(begin, 1);
  if (trim > 0) out.resize(out.size() - std::min(out.size() - begin, static_cast<size_t>(trim)));
}

OpenText TokenTable::open_text(std::span<const int32_t> ids, bool skip_special_tokens) const {
  if (kind_ > DecoderKind::kByteFallback) return {};
  // Back to a token after which nothing is open.
  size_t begin = ids.size();
  for (; begin > 0; --begin) {
    const int32_t id = ids[begin - 1];
    if (!contributes(id, skip_special_tokens)) continue;
    const bool is_closed = kind_ == DecoderKind::kByteLevel ? is_complete(id) && !text(id).empty()
                                                            : (flags_[id] & kTokenByte) == 0;
    if (is_closed) break;
  }
  Utf8Reader utf8;
  bool is_broken = false;
  for (int32_t id : ids.subspan(begin)) {
    if (!contributes(id, skip_special_tokens)) continue;
    for (char byte : text(id)) {
      utf8.push(static_cast<uint8_t>(byte), [&](std::string_view, bool is_valid) { is_broken |= !is_valid; });
    }
  }
  if (kind_ == DecoderKind::kByteFallback && is_broken) return OpenText::broken_run();
  return OpenText(utf8.unfinished());
}

// u32 kind, i32 strip_left, string separator, flags [size], offsets [num_texts + 1], string bytes
std::string TokenTable::serialize() const {
  std::vector<uint8_t> given_flags(flags_.size());
  for (int32_t id = 0; id < size(); ++id) given_flags[static_cast<size_t>(id)] = flags(id);
  std::string out;
  out.reserve(24 + separator_.size() + flags_.size() + sizeof(uint32_t) * offsets_.size() + bytes_.size());
  wire::put(out, static_cast<uint32_t>(kind_));
  wire::put(out, strip_left_);
  wire::put_string(out, separator_);
  wire::put_array(out, given_flags);
  wire::put_array(out, offsets_);
  wire::put_string(out, bytes_);
  return out;
}

TokenTable TokenTable::deserialize(std::string_view bytes) {
  const auto refuse = [](const char* given, const std::string& allowed) {
    throw InvalidArgument("token_table", given, allowed);
  };
  TokenTable table;
  try {
    wire::Reader reader(bytes);
    // Out of range values stay out of range in the narrower type, or finish_building() could not see them.
    table.kind_ = static_cast<DecoderKind>(std::min<uint32_t>(reader.get<uint32_t>(), 0xFF));
    table.strip_left_ = reader.get<int32_t>();
    table.separator_ = reader.get_string();
    reader.get_array(table.flags_);
    reader.get_array(table.offsets_);
    table.bytes_ = reader.get_string();
    reader.expect_end();
  } catch (const Error& error) {
    refuse(error.what(), "what TokenTable.serialize() gives");
  }
  const std::vector<uint32_t>& offsets = table.offsets_;
  if (offsets.size() != table.num_texts() + 1 || !std::ranges::is_sorted(offsets) || offsets.front() != 0 ||
      offsets.back() != table.bytes_.size()) {
    refuse("texts of other lengths", std::to_string(table.bytes_.size()) + " bytes in all");
  }
  table.finish_building();
  return table;
}

TextBoundary::Step TextBoundary::push_incomplete(const TokenTable& table, int32_t id) {
  if (table.flags(id) & kTokenByte) {
    const bool cut_before = !in_byte_run_;
    in_byte_run_ = true;
    return {cut_before, false};
  }
  const bool cut_before = !utf8_.is_inside_character();
  for (char byte : table.text(id)) utf8_.push(static_cast<uint8_t>(byte), [](std::string_view, bool) {});
  return {cut_before, !utf8_.is_inside_character()};
}

}  // namespace quire
