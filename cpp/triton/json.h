// A JSON reader for small documents: the model configuration, request parameters that are lists.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace quire::triton {

class Json {
 public:
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;

  // Throws Error with the offset of what is wrong.
  static Json parse(std::string_view text);

  Json() = default;
  template <class T>
  explicit Json(T value) : value_(std::move(value)) {}

  // The member, or null when this is no object or has no such member; so look-ups chain.
  const Json& operator[](std::string_view key) const;

  bool is_null() const { return is<std::monostate>(); }
  // T: bool, double, std::string, Array, Object.
  template <class T>
  bool is() const {
    return std::holds_alternative<T>(value_);
  }
  // The value; false, 0 or an empty one when it is of another type.
  template <class T>
  const T& as() const {
    static const T kNone{};
    return is<T>() ? std::get<T>(value_) : kNone;
  }
  template <class T>
  T value_or(T otherwise) const {
    return is<T>() ? std::get<T>(value_) : otherwise;
  }

 private:
  std::variant<std::monostate, bool, double, std::string, Array, Object> value_;
};

}  // namespace quire::triton
