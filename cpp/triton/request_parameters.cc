#include "request_parameters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <string>
#include <vector>

#include "api.h"
#include "json.h"
#include "quire/nearest_name.h"

namespace quire::triton {

namespace {

// Fields of the ensemble that only its tokenizer can honour.
constexpr std::string_view kOfTheTokenizer[] = {"bad_words",          "truncate_prompt_tokens",  "truncate",
                                                "add_special_tokens", "exclude_input_in_output", "echo",
                                                "return_full_text",   "sampling_parameters",     "strict",
                                                "text_input"};

// What Triton or its clients set for themselves.
bool is_tritons(std::string_view name) {
  constexpr std::string_view kNames[] = {"id",           "timeout",           "request_id", "sequence_start",
                                         "sequence_end", "binary_data_output"};
  return name.starts_with("triton_") ||
         std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

std::string quoted(std::string_view text) {
  constexpr size_t kMaxShown = 80;
  return text.size() <= kMaxShown ? "\"" + std::string(text) + "\""
                                  : "\"" + std::string(text.substr(0, kMaxShown)) + "...\"";
}

class Parameter {
 public:
  Parameter(TRITONBACKEND_Request* request, uint32_t index) {
    check(TRITONBACKEND_RequestParameter(request, index, &name_, &type_, &value_));
  }

  const char* name() const { return name_; }
  bool is_string() const { return type_ == TRITONSERVER_PARAMETER_STRING; }
  bool is_integer() const { return type_ == TRITONSERVER_PARAMETER_INT; }
  bool is_number() const { return is_integer() || type_ == TRITONSERVER_PARAMETER_DOUBLE; }
  bool is_bool() const { return type_ == TRITONSERVER_PARAMETER_BOOL; }
  std::string_view as_string() const { return static_cast<const char*>(value_); }
  bool as_bool() const { return *static_cast<const bool*>(value_); }
  int64_t as_integer() const { return *static_cast<const int64_t*>(value_); }
  double as_number() const {
    return is_integer() ? static_cast<double>(as_integer()) : *static_cast<const double*>(value_);
  }

  std::string text() const {
    if (is_string()) return quoted(as_string());
    if (is_bool()) return as_bool() ? "true" : "false";
    if (is_integer()) return std::to_string(as_integer());
    if (!is_number()) return "bytes";
    char buffer[32];
    return {buffer, std::to_chars(buffer, buffer + sizeof(buffer), as_number()).ptr};
  }

  [[noreturn]] void refuse(const std::string& allowed, const std::string& note = "") const {
    throw InvalidArgument(name_, text() + note, allowed);
  }

 private:
  const char* name_ = nullptr;
  TRITONSERVER_ParameterType type_ = TRITONSERVER_PARAMETER_STRING;
  const void* value_ = nullptr;
};

// The number that a string is, exactly.
template <class T>
bool parse(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// The value of `parameter` as the type of the field that it sets.
void get(const Parameter& parameter, bool& value) {
  if (!parameter.is_bool()) parameter.refuse("true or false");
  value = parameter.as_bool();
}

template <std::integral T>
void get(const Parameter& parameter, T& value) {
  int64_t given = 0;
  if (parameter.is_integer()) {
    given = parameter.as_integer();
  } else if (!parameter.is_string() || !parse(parameter.as_string(), given)) {
    parameter.refuse("an integer", parameter.is_number()   ? " (a float)"
                                   : parameter.is_string() ? " (a string)"
                                                           : "");
  }
  if (given < std::numeric_limits<T>::min() || given > std::numeric_limits<T>::max()) {
    parameter.refuse("an integer in [" + std::to_string(std::numeric_limits<T>::min()) + ", " +
                     std::to_string(std::numeric_limits<T>::max()) + "]");
  }
  value = static_cast<T>(given);
}

void get(const Parameter& parameter, float& value) {
  double given = std::numeric_limits<double>::quiet_NaN();
  if (parameter.is_number()) {
    given = parameter.as_number();
  } else if (parameter.is_string()) {
    parse(parameter.as_string(), given);
  }
  value = static_cast<float>(given);
  if (!std::isfinite(value)) parameter.refuse("a number", parameter.is_string() ? " (a string)" : "");
}

void get(const Parameter& parameter, std::string& value) {
  if (!parameter.is_string()) parameter.refuse("a non-empty string");
  value = parameter.as_string();
}

template <class T>
void get(const Parameter& parameter, std::optional<T>& value) {
  get(parameter, value.emplace());
}

// A JSON document in a string; null where the value is none.
Json parse_json(const Parameter& parameter) {
  if (!parameter.is_string()) return {};
  try {
    return Json::parse(parameter.as_string());
  } catch (const Error&) {
    return {};
  }
}

void get(const Parameter& parameter, std::vector<std::string>& value) {
  if (!parameter.is_string()) parameter.refuse("a non-empty string or a list of them");
  const Json json = parse_json(parameter);
  const Json::Array& items = json.as_array();
  const bool is_list = json.is_array() && std::all_of(items.begin(), items.end(),
                                                      [](const Json& item) { return item.is_string(); });
  value.clear();
  if (!is_list) value.emplace_back(parameter.as_string());  // itself one string, such as "[INST]"
  if (is_list) {
    for (const Json& item : items) value.push_back(item.as_string());
  }
}

bool is_id(const Json& json) {
  const double value = json.as_number(0.5);
  return value == std::floor(value) && std::abs(value) <= INT32_MAX;
}

// Whether `json` is a list of ids.
bool get_ids(const Json& json, std::vector<int32_t>& ids) {
  const Json::Array& items = json.as_array();
  if (!json.is_array() || !std::all_of(items.begin(), items.end(), is_id)) return false;
  ids.clear();
  for (const Json& item : items) ids.push_back(static_cast<int32_t>(item.as_number()));
  return true;
}

void get(const Parameter& parameter, std::vector<int32_t>& value) {
  if (get_ids(parse_json(parameter), value)) return;
  parameter.refuse("a list of integers as a JSON string, such as \"[1, 2]\"");
}

void get(const Parameter& parameter, std::vector<std::vector<int32_t>>& value) {
  const Json json = parse_json(parameter);
  value.resize(json.as_array().size());
  size_t i = 0;
  for (const Json& item : json.as_array()) i += get_ids(item, value[i]);
  if (!json.is_array() || i < value.size()) {
    parameter.refuse("a list of lists of integers as a JSON string, such as \"[[1, 2], [3]]\"");
  }
}

void get(const Parameter& parameter, std::vector<LogitBias>& value) {
  const std::string allowed = "an object of token ids and numbers as a JSON string, such as '{\"5\": 1.5}'";
  const Json json = parse_json(parameter);
  value.clear();
  const auto add = [&](int32_t id, const Json& bias) {
    if (!bias.is_number()) parameter.refuse(allowed);
    value.push_back({id, static_cast<float>(bias.as_number())});
  };
  if (!json.is_object() && !json.is_array()) parameter.refuse(allowed);
  for (const auto& [key, bias] : json.as_object()) {
    int32_t id = 0;
    if (!parse(key, id)) parameter.refuse(allowed);
    add(id, bias);
  }
  for (const Json& pair : json.as_array()) {  // [[id, bias], ...]
    const Json::Array& items = pair.as_array();
    if (items.size() != 2 || !is_id(items[0])) parameter.refuse(allowed);
    add(static_cast<int32_t>(items[0].as_number()), items[1]);
  }
}

[[noreturn]] void refuse_unknown(const std::string& name, const RequestTensor& fields) {
  if (std::find(std::begin(kOfTheTokenizer), std::end(kOfTheTokenizer), name) != std::end(kOfTheTokenizer)) {
    throw InvalidArgument(name, "a field that this model does not know",
                          "such a field in a request to the ensemble, whose tokenizer honours it");
  }
  std::string known;
  std::vector<std::string_view> names;
  for_each_client_field(fields, [&](std::string_view field, const auto&) {
    known += (known.empty() ? "" : ", ") + std::string(field);
    names.push_back(field);
  });
  for (const quire::fields::Alias& alias : quire::fields::kAliases) names.push_back(alias.alias);
  throw InvalidArgument(name.substr(0, 80), "an unknown field" + did_you_mean(name, names), known);
}

}  // namespace

void read_request_parameters(TRITONBACKEND_Request* request,
                             const std::optional<std::regex>& forwarded_headers, RequestTensor& fields,
                             std::vector<std::pair<std::string, std::string>>& aliases) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestParameterCount(request, &count));
  std::vector<std::string_view> given;
  for (uint32_t i = 0; i < count; ++i) {
    const Parameter parameter(request, i);
    std::string_view name = parameter.name();
    if (is_tritons(name)) continue;
    if (forwarded_headers && std::regex_match(parameter.name(), *forwarded_headers)) continue;
    const auto* alias = std::find_if(std::begin(fields::kAliases), std::end(fields::kAliases),
                                     [&](const fields::Alias& known) { return known.alias == name; });
    if (alias != std::end(fields::kAliases)) {
      name = alias->name;
      aliases.emplace_back(name, alias->alias);
    }
    if (std::find(given.begin(), given.end(), name) != given.end()) {
      throw InvalidArgument(std::string(name), "a request parameter and another value of the same field",
                            "one value");
    }
    bool is_known = false;
    for_each_client_field(fields, [&](std::string_view field, auto& value) {
      if (field != name) return;
      get(parameter, value);
      check_given(name, parameter.name(), value);
      is_known = true;
    });
    if (!is_known) refuse_unknown(parameter.name(), fields);
    given.push_back(name);
  }
}

}  // namespace quire::triton
