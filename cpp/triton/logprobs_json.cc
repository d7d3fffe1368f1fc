#include "logprobs_json.h"

#include <charconv>
#include <cmath>
#include <string_view>

namespace quire::triton {

namespace {

template <class T>
void append_number(T value, std::string& out) {
  char digits[32];
  const auto result = std::to_chars(digits, digits + sizeof(digits), value);
  out.append(digits, result.ptr);
}

// text: valid UTF-8.
void append_string(std::string_view text, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) {
      out += "\\u00";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

void append_entry(const Logprob& entry, const TokenTable& token_table, std::string& out) {
  out += '"';
  append_number(entry.token_id, out);
  out += "\": {\"logprob\": ";
  if (std::isfinite(entry.logprob)) {
    // All digits of the float: they are read as a double.
    append_number(static_cast<double>(entry.logprob), out);
  } else {
    out += "null";
  }
  out += ", \"rank\": ";
  append_number(entry.rank, out);
  out += ", \"decoded_token\": ";
  append_string(token_table.decode(std::span(&entry.token_id, 1), false, 0, false), out);
  out += '}';
}

}  // namespace

std::string logprobs_json(std::span<const Logprob> entries, uint32_t num_per_place, bool is_prompt,
                          const TokenTable& token_table) {
  std::string out = is_prompt ? "[null" : "[";
  for (size_t begin = 0; begin < entries.size(); begin += num_per_place) {
    out += begin > 0 || is_prompt ? ", {" : "{";
    const auto place = entries.subspan(begin, num_per_place);
    append_entry(place[0], token_table, out);
    for (const Logprob& entry : place.subspan(1)) {
      if (entry.token_id < 0 || entry.token_id == place[0].token_id) continue;
      out += ", ";
      append_entry(entry, token_table, out);
    }
    out += '}';
  }
  out += ']';
  return out;
}

}  // namespace quire::triton
