#include "json.h"

#include <charconv>

#include "quire/error.h"

namespace quire::triton {

namespace {

constexpr int kMaxDepth = 64;

// Recursive descent over one document.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json document() {
    Json value = parse_value(0);
    skip_space();
    if (pos_ != text_.size()) fail("the end of the document");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* expected) const {
    throw Error("JSON: expected " + std::string(expected) + " at offset " + std::to_string(pos_));
  }

  void skip_space() {
    while (pos_ < text_.size() && std::string_view(" \t\r\n").find(text_[pos_]) != std::string_view::npos)
      ++pos_;
  }

  bool accept(char wanted) {
    skip_space();
    if (pos_ == text_.size() || text_[pos_] != wanted) return false;
    ++pos_;
    return true;
  }

  void expect(char wanted, const char* expected) {
    if (!accept(wanted)) fail(expected);
  }

  bool accept_word(std::string_view word) {
    if (!text_.substr(pos_).starts_with(word)) return false;
    pos_ += word.size();
    return true;
  }

  Json parse_value(int depth) {
    if (depth > kMaxDepth) fail("fewer nested values");
    if (accept('{')) return parse_object(depth);
    if (accept('[')) return parse_array(depth);
    if (accept('"')) return Json(parse_string());
    if (accept_word("true")) return Json(true);
    if (accept_word("false")) return Json(false);
    if (accept_word("null")) return Json();
    double number = 0;
    const auto [end, error] = std::from_chars(text_.data() + pos_, text_.data() + text_.size(), number);
    if (error != std::errc()) fail("a value");
    pos_ = static_cast<size_t>(end - text_.data());
    return Json(number);
  }

  Json parse_object(int depth) {
    Json::Object object;
    if (accept('}')) return Json(std::move(object));
    do {
      expect('"', "a key");
      std::string key = parse_string();
      expect(':', "':'");
      if (object.contains(key)) fail("each key once");
      object[std::move(key)] = parse_value(depth + 1);
    } while (accept(','));
    expect('}', "',' or '}'");
    return Json(std::move(object));
  }

  Json parse_array(int depth) {
    Json::Array array;
    if (accept(']')) return Json(std::move(array));
    do {
      array.push_back(parse_value(depth + 1));
    } while (accept(','));
    expect(']', "',' or ']'");
    return Json(std::move(array));
  }

  // After the opening quote, to after the closing one.
  std::string parse_string() {
    std::string out;
    while (true) {
      if (pos_ == text_.size()) fail("a closing quote");
      const char c = text_[pos_++];
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (pos_ == text_.size()) fail("an escape");
      const char escape = text_[pos_++];
      static constexpr std::string_view kNames = "\"\\/bfnrt";
      static constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
      if (escape == 'u') {
        append_utf8(out, parse_code_point());
      } else if (const size_t i = kNames.find(escape); i != std::string_view::npos) {
        out += kValues[i];
      } else {
        fail("a known escape");
      }
    }
  }

  uint32_t parse_hex4() {
    uint32_t value = 0;
    const char* begin = text_.data() + pos_;
    if (text_.size() - pos_ < 4) fail("four hexadecimal digits");
    const auto [end, error] = std::from_chars(begin, begin + 4, value, 16);
    if (error != std::errc() || end != begin + 4) fail("four hexadecimal digits");
    pos_ += 4;
    return value;
  }

  uint32_t parse_code_point() {
    const uint32_t high = parse_hex4();
    if (high < 0xD800 || high > 0xDBFF) return high;
    if (!accept_word("\\u")) fail("the second half of a surrogate pair");
    const uint32_t low = parse_hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("the second half of a surrogate pair");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  static void append_utf8(std::string& out, uint32_t code) {
    if (code < 0x80) {
      out += static_cast<char>(code);
      return;
    }
    const int num_following = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr uint8_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(kLead[num_following] | (code >> (6 * num_following)));
    for (int i = num_following - 1; i >= 0; --i) out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
  }

  std::string_view text_;
  size_t pos_ = 0;
};

}  // namespace

Json Json::parse(std::string_view text) { return Parser(text).document(); }

const Json& Json::operator[](std::string_view key) const {
  static const Json kNull;
  const Object& object = as<Object>();
  const auto it = object.find(key);
  return it == object.end() ? kNull : it->second;
}

}  // namespace quire::triton
