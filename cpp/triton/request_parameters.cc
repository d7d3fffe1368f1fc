#include "request_parameters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <limits>
#include <string>
#include <variant>
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

// The value of a parameter; null: it is of another type.
const char* const* string_of(const Parameter& parameter) {
  return std::get_if<const char*>(&parameter.value);
}

[[noreturn]] void refuse(const Parameter& parameter, const std::string& allowed,
                         const std::string& note = "") {
  struct Given {
    std::string operator()(const char* text) const { return quoted(text); }
    std::string operator()(bool flag) const { return flag ? "true" : "false"; }
    std::string operator()(int64_t number) const { return std::to_string(number); }
    std::string operator()(double number) const {
      char buffer[32];
      return {buffer, std::to_chars(buffer, std::end(buffer), number).ptr};
    }
  };
  throw InvalidArgument(parameter.name, std::visit(Given(), parameter.value) + note, allowed);
}

// The number that a string is, exactly.
template <class T>
bool parse(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

// The value of `parameter` as the type of the field that it sets.
void get(const Parameter& parameter, bool& value) {
  const auto* given = std::get_if<bool>(&parameter.value);
  if (given == nullptr) refuse(parameter, "true or false");
  value = *given;
}

template <std::integral T>
void get(const Parameter& parameter, T& value) {
  int64_t given = 0;
  const auto* text = string_of(parameter);
  if (const auto* integer = std::get_if<int64_t>(&parameter.value)) {
    given = *integer;
  } else if (text == nullptr || !parse(*text, given)) {
    const bool is_float = std::holds_alternative<double>(parameter.value);
    refuse(parameter, "an integer", is_float ? " (a float)" : text != nullptr ? " (a string)" : "");
  }
  if (given < std::numeric_limits<T>::min() || given > std::numeric_limits<T>::max()) {
    refuse(parameter, "an integer in [" + std::to_string(std::numeric_limits<T>::min()) + ", " +
                          std::to_string(std::numeric_limits<T>::max()) + "]");
  }
  value = static_cast<T>(given);
}

void get(const Parameter& parameter, float& value) {
  double given = std::numeric_limits<double>::quiet_NaN();
  const auto* text = string_of(parameter);
  if (text != nullptr) {
    parse(*text, given);
  } else if (const auto* integer = std::get_if<int64_t>(&parameter.value)) {
    given = static_cast<double>(*integer);
  } else if (const auto* number = std::get_if<double>(&parameter.value)) {
    given = *number;
  }
  value = static_cast<float>(given);
  if (!std::isfinite(value)) refuse(parameter, "a number", text != nullptr ? " (a string)" : "");
}

void get(const Parameter& parameter, std::string& value) {
  const auto* text = string_of(parameter);
  if (text == nullptr) refuse(parameter, "a non-empty string");
  value = *text;
}

template <class T>
void get(const Parameter& parameter, std::optional<T>& value) {
  get(parameter, value.emplace());
}

// A JSON document in a string; null where the value is none.
Json parse_json(const Parameter& parameter) {
  const auto* text = string_of(parameter);
  if (text == nullptr) return {};
  try {
    return Json::parse(*text);
  } catch (const Error&) {
    return {};
  }
}

void get(const Parameter& parameter, std::vector<std::string>& value) {
  const auto* text = string_of(parameter);
  if (text == nullptr) refuse(parameter, "a non-empty string or a list of them");
  if (**text == '\0') return;  // clients of TensorRT-LLM send it for none
  const Json json = parse_json(parameter);
  const Json::Array& items = json.as<Json::Array>();
  const bool is_list = json.is<Json::Array>() &&
                       std::ranges::all_of(items, [](const Json& item) { return item.is<std::string>(); });
  value.clear();
  if (!is_list) value.emplace_back(*text);  // itself one string, such as "[INST]"
  if (is_list) {
    for (const Json& item : items) value.push_back(item.as<std::string>());
  }
}

bool is_id(const Json& json) {
  const double value = json.value_or(0.5);
  return value == std::floor(value) && std::abs(value) <= INT32_MAX;
}

// Whether `json` is a list of ids.
bool get_ids(const Json& json, std::vector<int32_t>& ids) {
  const Json::Array& items = json.as<Json::Array>();
  if (!json.is<Json::Array>() || !std::all_of(items.begin(), items.end(), is_id)) return false;
  ids.clear();
  for (const Json& item : items) ids.push_back(static_cast<int32_t>(item.as<double>()));
  return true;
}

void get(const Parameter& parameter, std::vector<int32_t>& value) {
  if (get_ids(parse_json(parameter), value)) return;
  refuse(parameter, "a list of integers as a JSON string, such as \"[1, 2]\"");
}

void get(const Parameter& parameter, std::vector<std::vector<int32_t>>& value) {
  const Json json = parse_json(parameter);
  value.resize(json.as<Json::Array>().size());
  size_t i = 0;
  for (const Json& item : json.as<Json::Array>()) i += get_ids(item, value[i]);
  if (!json.is<Json::Array>() || i < value.size()) {
    refuse(parameter, "a list of lists of integers as a JSON string, such as \"[[1, 2], [3]]\"");
  }
}

void get(const Parameter& parameter, std::vector<LogitBias>& value) {
  const std::string allowed = "an object of token ids and numbers as a JSON string, such as '{\"5\": 1.5}'";
  const Json json = parse_json(parameter);
  value.clear();
  const auto add = [&](int32_t id, const Json& bias) {
    if (!bias.is<double>()) refuse(parameter, allowed);
    value.push_back({id, static_cast<float>(bias.as<double>())});
  };
  if (!json.is<Json::Object>() && !json.is<Json::Array>()) refuse(parameter, allowed);
  for (const auto& [key, bias] : json.as<Json::Object>()) {
    int32_t id = 0;
    if (!parse(key, id)) refuse(parameter, allowed);
    add(id, bias);
  }
  for (const Json& pair : json.as<Json::Array>()) {  // [[id, bias], ...]
    const Json::Array& items = pair.as<Json::Array>();
    if (items.size() != 2 || !is_id(items[0])) refuse(parameter, allowed);
    add(static_cast<int32_t>(items[0].as<double>()), items[1]);
  }
}

[[noreturn]] void refuse_unknown(const std::string& name, const RequestTensor& fields) {
  if (std::find(std::begin(kOfTheTokenizer), std::end(kOfTheTokenizer), name) != std::end(kOfTheTokenizer)) {
    throw InvalidArgument(name, "a field that this model does not know",
                          "such a field in a request to the ensemble, whose tokenizer honours it");
  }
  std::vector<std::string_view> names;
  for_each_client_field(fields, [&](std::string_view field, const auto&) { names.push_back(field); });
  for (const quire::fields::Alias& alias : quire::fields::kAliases) names.push_back(alias.alias);
  throw InvalidArgument(name.substr(0, 80), "an unknown field" + did_you_mean(name, names),
                        "the fields of docs/request_fields.md");
}

}  // namespace

void read_request_parameters(TRITONBACKEND_Request* request,
                             const std::optional<std::regex>& forwarded_headers, RequestTensor& fields,
                             std::vector<std::pair<std::string, std::string>>& aliases) {
  std::vector<std::pair<std::string_view, bool>> given;  // fields, and whether by their newer name
  for (const Parameter& parameter : read_parameters(request)) {
    std::string_view name = parameter.name;
    if (is_tritons(name)) continue;
    if (forwarded_headers && std::regex_match(parameter.name, *forwarded_headers)) continue;
    const auto* alias = std::find_if(std::begin(fields::kAliases), std::end(fields::kAliases),
                                     [&](const fields::Alias& known) { return known.alias == name; });
    if (alias != std::end(fields::kAliases)) {
      name = alias->name;
      aliases.emplace_back(name, alias->alias);
    }
    const bool is_newer = std::ranges::find(fields::kNewerNames, std::string_view(parameter.name)) !=
                          std::end(fields::kNewerNames);
    const auto before = std::ranges::find(given, name, &std::pair<std::string_view, bool>::first);
    if (before != given.end() && before->second && !is_newer) continue;
    if (before != given.end() && before->second == is_newer) {
      throw InvalidArgument(std::string(name), "a request parameter and another value of the same field",
                            "one value");
    }
    bool is_known = false;
    for_each_client_field(fields, [&](std::string_view field, auto& value) {
      if (field != name) return;
      get(parameter, value);
      check_given(name, parameter.name, value);
      is_known = true;
    });
    if (!is_known) refuse_unknown(parameter.name, fields);
    given.emplace_back(name, is_newer);
  }
}

}  // namespace quire::triton
