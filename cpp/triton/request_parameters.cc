#include "request_parameters.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "json.h"

namespace quire::triton {

namespace {

// Fields of the ensemble that only its tokenizer can honour.
constexpr std::string_view kOfTheTokenizer[] = {"bad_words",          "truncate_prompt_tokens",  "truncate",
                                                "add_special_tokens", "exclude_input_in_output", "echo",
                                                "return_full_text",   "sampling_parameters",     "strict",
                                                "text_input"};

// What Triton or its clients set for themselves.
bool is_tritons(std::string_view name) {
  constexpr std::string_view kNames[] = {"id",           "timeout",           "sequence_id", "sequence_start",
                                         "sequence_end", "binary_data_output"};
  return name.starts_with("triton_") ||
         std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

std::string quoted(std::string_view text) {
  constexpr size_t kMaxShown = 80;
  return text.size() <= kMaxShown ? "\"" + std::string(text) + "\""
                                  : "\"" + std::string(text.substr(0, kMaxShown)) + "...\"";
}

// Insertions, deletions and substitutions between two names.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
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

template <class T>
void append(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_string(std::string& bytes, std::string_view text) {
  append(bytes, static_cast<uint32_t>(text.size()));
  bytes.append(text);
}

template <class T>
void append_integer(std::string& bytes, const Parameter& parameter) {
  int64_t value = 0;
  if (parameter.is_integer()) {
    value = parameter.as_integer();
  } else if (!parameter.is_string() || !parse(parameter.as_string(), value)) {
    parameter.refuse("an integer", parameter.is_number()   ? " (a float)"
                                   : parameter.is_string() ? " (a string)"
                                                           : "");
  }
  if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) {
    parameter.refuse("an integer in [" + std::to_string(std::numeric_limits<T>::min()) + ", " +
                     std::to_string(std::numeric_limits<T>::max()) + "]");
  }
  append(bytes, static_cast<T>(value));
}

void append_float(std::string& bytes, const Parameter& parameter) {
  double value = std::numeric_limits<double>::quiet_NaN();
  if (parameter.is_number()) {
    value = parameter.as_number();
  } else if (parameter.is_string()) {
    parse(parameter.as_string(), value);
  }
  if (!std::isfinite(static_cast<float>(value))) {
    parameter.refuse("a number", parameter.is_string() ? " (a string)" : "");
  }
  append(bytes, static_cast<float>(value));
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

int64_t append_strings(std::string& bytes, const Parameter& parameter) {
  if (!parameter.is_string()) parameter.refuse("a non-empty string or a list of them");
  const Json json = parse_json(parameter);
  const Json::Array& items = json.as_array();
  const bool is_list = json.is_array() && std::all_of(items.begin(), items.end(),
                                                      [](const Json& item) { return item.is_string(); });
  if (!is_list) {
    append_string(bytes, parameter.as_string());  // itself one string, such as "[INST]"
    return 1;
  }
  for (const Json& item : items) append_string(bytes, item.as_string());
  return static_cast<int64_t>(items.size());
}

bool is_id(double value) { return value == std::floor(value) && std::abs(value) <= INT32_MAX; }

int64_t append_ids(std::string& bytes, const Parameter& parameter) {
  const Json json = parse_json(parameter);
  const Json::Array& items = json.as_array();
  const bool is_list = json.is_array() && std::all_of(items.begin(), items.end(), [](const Json& item) {
                         return item.is_number() && is_id(item.as_number());
                       });
  if (!is_list) parameter.refuse("a list of integers as a JSON string, such as \"[1, 2]\"");
  for (const Json& item : items) append(bytes, static_cast<int32_t>(item.as_number()));
  return static_cast<int64_t>(items.size());
}

void set_logit_bias(const Parameter& parameter, GenerationRequest& result) {
  const std::string allowed = "an object of token ids and numbers as a JSON string, such as '{\"5\": 1.5}'";
  const Json json = parse_json(parameter);
  const auto add = [&](int32_t id, const Json& bias) {
    if (!bias.is_number()) parameter.refuse(allowed);
    result.logit_bias_ids.push_back(id);
    result.logit_bias.push_back(static_cast<float>(bias.as_number()));
  };
  if (!json.is_object() && !json.is_array()) parameter.refuse(allowed);
  for (const auto& [key, bias] : json.as_object()) {
    int32_t id = 0;
    if (!parse(key, id)) parameter.refuse(allowed);
    add(id, bias);
  }
  for (const Json& pair : json.as_array()) {  // [[id, bias], ...]
    const Json::Array& items = pair.as_array();
    if (items.size() != 2 || !items[0].is_number() || !is_id(items[0].as_number())) parameter.refuse(allowed);
    add(static_cast<int32_t>(items[0].as_number()), items[1]);
  }
}

// `parameter` as a tensor that `input` can read; `bytes` keeps its content.
void set(const GenerationInput& input, const Parameter& parameter, std::string& bytes,
         GenerationRequest& result) {
  int64_t count = 1;
  bytes.clear();
  switch (input.type) {
    case TRITONSERVER_TYPE_BOOL:
      if (!parameter.is_bool()) parameter.refuse("true or false");
      append(bytes, static_cast<uint8_t>(parameter.as_bool()));
      break;
    case TRITONSERVER_TYPE_FP32:
      append_float(bytes, parameter);
      break;
    case TRITONSERVER_TYPE_INT64:
      append_integer<int64_t>(bytes, parameter);
      break;
    case TRITONSERVER_TYPE_INT32:
      if (input.is_list) {
        count = append_ids(bytes, parameter);
      } else {
        append_integer<int32_t>(bytes, parameter);
      }
      break;
    default:
      if (input.is_list) {
        count = append_strings(bytes, parameter);
      } else {
        if (!parameter.is_string()) parameter.refuse("a non-empty string");
        append_string(bytes, parameter.as_string());
      }
  }
  InputTensor tensor;
  tensor.name = parameter.name();  // for errors: as the client spells it
  tensor.type = input.type;
  tensor.shape = std::span(&count, 1);
  tensor.bytes = bytes;
  input.set(result, tensor);
}

[[noreturn]] void refuse_unknown(const std::string& name, std::span<const GenerationInput> inputs) {
  if (std::find(std::begin(kOfTheTokenizer), std::end(kOfTheTokenizer), name) != std::end(kOfTheTokenizer)) {
    throw InvalidArgument(name, "a field that this model does not know",
                          "such a field in a request to the ensemble, whose tokenizer honours it");
  }
  std::string known;
  std::string_view nearest;
  size_t nearest_distance = std::max<size_t>(1, name.size() / 3) + 1;
  for (const GenerationInput& input : inputs) {
    if (!input.is_field) continue;
    known += (known.empty() ? "" : ", ") + std::string(input.name);
    const size_t here = name.size() <= 64 ? distance(name, input.name) : nearest_distance;
    if (here >= nearest_distance) continue;
    nearest = input.name;
    nearest_distance = here;
  }
  const std::string hint = nearest.empty() ? "" : " (did you mean \"" + std::string(nearest) + "\"?)";
  throw InvalidArgument(name.substr(0, 80), "an unknown field" + hint, known);
}

}  // namespace

void read_request_parameters(TRITONBACKEND_Request* request, std::span<const GenerationInput> inputs,
                             const std::function<bool(std::string_view)>& has_tensor,
                             const std::optional<std::regex>& forwarded_headers, GenerationRequest& result) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestParameterCount(request, &count));
  std::vector<std::string_view> given;
  std::string bytes;
  for (uint32_t i = 0; i < count; ++i) {
    const Parameter parameter(request, i);
    std::string_view name = parameter.name();
    if (is_tritons(name)) continue;
    if (forwarded_headers && std::regex_match(parameter.name(), *forwarded_headers)) continue;
    const auto* alias = std::find_if(std::begin(fields::kAliases), std::end(fields::kAliases),
                                     [&](const fields::Alias& known) { return known.alias == name; });
    if (alias != std::end(fields::kAliases)) {
      name = alias->name;
      result.aliases.emplace_back(name, alias->alias);
    }
    const auto input = std::find_if(inputs.begin(), inputs.end(),
                                    [&](const GenerationInput& known) { return name == known.name; });
    if (input == inputs.end() || !input->is_field) refuse_unknown(parameter.name(), inputs);
    if (has_tensor(name) || std::find(given.begin(), given.end(), name) != given.end()) {
      throw InvalidArgument(std::string(name), "a request parameter and another value of the same field",
                            "one value");
    }
    given.push_back(name);
    if (name == "logit_bias") {
      set_logit_bias(parameter, result);
    } else {
      set(*input, parameter, bytes, result);
    }
  }
}

}  // namespace quire::triton
