// A JSON reader for small documents: the model configuration, request parameters that are lists.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
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
  explicit Json(bool value) : value_(value) {}
  explicit Json(double value) : value_(value) {}
  explicit Json(std::string value) : value_(std::move(value)) {}
  explicit Json(Array value);
  explicit Json(Object value);

  // The member, or null when this is no object or has no such member; so look-ups chain.
  const Json& operator[](std::string_view key) const;

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_number() const { return std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<std::shared_ptr<Array>>(value_); }
  bool is_object() const { return std::holds_alternative<std::shared_ptr<Object>>(value_); }
  // The value, or `otherwise` when it is of another type.
  bool as_bool(bool otherwise = false) const;
  double as_number(double otherwise = 0) const;
  std::string as_string(std::string otherwise = {}) const;
  const Array& as_array() const;    // empty when this is no array
  const Object& as_object() const;  // empty when this is no object

 private:
  std::variant<std::monostate, bool, double, std::string, std::shared_ptr<Array>, std::shared_ptr<Object>>
      value_;
};

}  // namespace quire::triton
