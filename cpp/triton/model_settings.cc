#include "model_settings.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "output_table.h"
#include "quire/error.h"

namespace quire::triton {

namespace {

// Names and types of all outputs, and the senders that have them.
constexpr auto kOutputs = [] {
  std::array<std::pair<TensorSpec, uint32_t>, std::size(outputs::kTable)> all{};
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = {{outputs::kTable[i].name, outputs::kTable[i].type}, outputs::kTable[i].senders};
  }
  return all;
}();

// Role unary has all, role generation all but the first; a tokenizer makes the last two.
constexpr TensorSpec kGenerationInputs[] = {
    {"prompt_lengths", TRITONSERVER_TYPE_INT32},
    {"input_ids", TRITONSERVER_TYPE_INT32},
    {"request", TRITONSERVER_TYPE_UINT8},
};

constexpr TensorSpec kDetokenizerInputs[] = {
    {"chunk", TRITONSERVER_TYPE_UINT8},
    {"output_ids", TRITONSERVER_TYPE_INT32},
};

// The name that Triton's vLLM backend has for it.
constexpr char kReportMetrics[] = "REPORT_CUSTOM_METRICS";
constexpr char kServedName[] = "served_model_name";

struct RoleSpec {
  const char* name;
  Role role;
  std::vector<std::string_view> parameters;  // that config.pbtxt may have
};

const RoleSpec kRoles[] = {
    {"generation",
     Role::kGeneration,
     {"role", "python", "engine_module", "forwarded_headers", kReportMetrics, kServedName}},
    {"tokenizer",
     Role::kTokenizer,
     {"role", "generation_model", "forwarded_headers", "dialect", "exclude_input_in_output", "python",
      "tokenizer_module", "tokenize_timeout_s", kReportMetrics, kServedName}},
    {"detokenizer", Role::kDetokenizer, {"role", "generation_model", "dialect"}},
    {"unary", Role::kUnary, {"role", "generation_model", "tokenizer_model", "dialect"}},
};

// By Dialect.
constexpr std::string_view kDialects[] = {"vllm", "trtllm"};

std::string quote(std::string_view text) { return "'" + std::string(text) + "'"; }

template <class Range>
std::string joined(const Range& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + std::string(name);
  return text;
}

// The type as config.pbtxt spells it. A table of our own: check_model_config() runs without a server.
const char* config_type(TRITONSERVER_DataType type) {
  constexpr const char* kNames[] = {"TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32",
                                    "TYPE_UINT64",  "TYPE_INT8", "TYPE_INT16", "TYPE_INT32",  "TYPE_INT64",
                                    "TYPE_FP16",    "TYPE_FP32", "TYPE_FP64",  "TYPE_STRING", "TYPE_BF16"};
  return kNames[type];
}

// Every declared tensor must be one the role knows, with its type.
template <class Known>
void check_tensors(const Json& declared, const Known& known, const std::string& kind) {
  for (const Json& tensor : declared.as<Json::Array>()) {
    const std::string name = tensor["name"].as<std::string>();
    const auto spec = std::find_if(known.begin(), known.end(),
                                   [&](const auto& known_one) { return name == known_one.name; });
    if (spec == known.end()) {
      std::vector<std::string> names;
      for (const auto& s : known) names.emplace_back(s.name);
      throw InvalidArgument("config.pbtxt: " + kind, quote(name), joined(names));
    }
    const std::string type = tensor["data_type"].as<std::string>();
    if (type != config_type(spec->type)) {
      throw InvalidArgument("config.pbtxt: data_type of " + kind + " " + quote(name), type,
                            config_type(spec->type));
    }
  }
}

std::vector<TensorSpec> known_outputs(Sender sender) {
  const auto ids_and_request = generation_inputs(Role::kGeneration);
  std::vector<TensorSpec> known;
  if (sender.role == Role::kTokenizer) known.assign(ids_and_request.begin(), ids_and_request.end());
  for (const auto& [spec, senders] : kOutputs) {
    if ((senders & outputs::bit(sender)) != 0) known.push_back(spec);
  }
  return known;
}

Dialect read_dialect(const std::string& name) {
  const auto* const found = std::find(std::begin(kDialects), std::end(kDialects), name);
  if (found == std::end(kDialects)) {
    throw InvalidArgument("config.pbtxt: parameters: dialect", quote(name), joined(kDialects));
  }
  return static_cast<Dialect>(found - std::begin(kDialects));
}

bool read_bool(std::string value, const char* name) {
  std::transform(value.begin(), value.end(), value.begin(), [](unsigned char c) { return std::tolower(c); });
  if (value == "true" || value == "yes" || value == "1") return true;
  if (value == "false" || value == "no" || value == "0") return false;
  throw InvalidArgument(std::string("config.pbtxt: parameters: ") + name, quote(value),
                        "true, yes, false, no");
}

// Features of Triton that would have no effect here, or a wrong one, without a word.
void check_features(const Json& config) {
  const auto refuse = [](const std::string& setting, const std::string& given, const std::string& allowed) {
    throw InvalidArgument("config.pbtxt: " + setting, given, allowed);
  };
  if (config["response_cache"]["enable"].as<bool>()) {
    refuse("response_cache { enable }", "true",
           "false (its key leaves out request parameters, so a request would get the answer of another)");
  }
  for (const Json& group : config["instance_group"].as<Json::Array>()) {
    if (!group["rate_limiter"].is_null()) {
      refuse("instance_group: rate_limiter", "a setting",
             "none (an instance hands its requests on at once, so it never holds a resource)");
    }
  }
  for (const char* key : {"batch_input", "batch_output"}) {
    if (!config[key].as<Json::Array>().empty())
      refuse(key, "a setting", "none (the engine batches by itself)");
  }
  for (const char* kind : {"input", "output"}) {
    for (const Json& tensor : config[kind].as<Json::Array>()) {
      const std::string where = std::string(kind) + " " + quote(tensor["name"].as<std::string>());
      if (!tensor["reshape"].is_null()) refuse(where + ": reshape", "a setting", "none");
      if (tensor["is_shape_tensor"].as<bool>()) refuse(where + ": is_shape_tensor", "true", "false");
      if (tensor["allow_ragged_batch"].as<bool>()) refuse(where + ": allow_ragged_batch", "true", "false");
    }
  }
  const std::string file = config["default_model_filename"].as<std::string>();
  if (!file.empty() && file != "model.json")
    refuse("default_model_filename", quote(file), "none, or 'model.json'");
}

void check_scheduling(const Json& config, Sender sender) {
  const Role role = sender.role;
  const auto max_batch_size = static_cast<int64_t>(config["max_batch_size"].as<double>());
  // TensorRT-LLM's clients look for a batch dimension, whose size it limits; Triton puts nothing together.
  if (max_batch_size != 0 && sender.dialect != Dialect::kTrtllm) {
    throw InvalidArgument("config.pbtxt: max_batch_size", std::to_string(max_batch_size),
                          "0 (the engine batches by itself)");
  }
  // Triton's batchers drop cancelled requests before the backend sees them, but the detokenizer must see
  // them: that is how a cancellation reaches the engine.
  for (const char* key : {"dynamic_batching", "sequence_batching"}) {
    if (!config[key].is_null()) {
      throw InvalidArgument(std::string("config.pbtxt: ") + key, "a setting",
                            "none (the engine batches by itself)");
    }
  }
  const bool is_decoupled = config["model_transaction_policy"]["decoupled"].as<bool>();
  if (is_decoupled != (role == Role::kGeneration || role == Role::kDetokenizer)) {
    throw InvalidArgument("config.pbtxt: model_transaction_policy { decoupled }",
                          is_decoupled ? "true" : "false", is_decoupled ? "false" : "true");
  }
}

// Not their meaning: the tokenizer's process reads most of them, and says at load what is wrong.
void read_tokenizer_parameters(const Json& parameters, ModelSettings& settings) {
  settings.tokenizer_module =
      parameters["tokenizer_module"]["string_value"].value_or<std::string>("quire.triton.tokenizer_worker");
  for (const char* name : {"generation_model", "forwarded_headers", "dialect", "exclude_input_in_output"}) {
    const Json& value = parameters[name]["string_value"];
    if (value.is<std::string>()) settings.tokenizer_parameters.emplace_back(name, value.as<std::string>());
  }
  const std::string timeout = parameters["tokenize_timeout_s"]["string_value"].value_or<std::string>("30");
  char* end = nullptr;
  settings.tokenize_timeout_s = std::strtod(timeout.c_str(), &end);
  if (timeout.empty() || *end != '\0' ||
      !(settings.tokenize_timeout_s > 0 && settings.tokenize_timeout_s <= 86400)) {
    throw InvalidArgument("config.pbtxt: parameters: tokenize_timeout_s", quote(timeout),
                          "seconds, more than 0 and at most 86400");
  }
}

}  // namespace

std::span<const TensorSpec> generation_inputs(Role role) {
  return std::span(kGenerationInputs).subspan(role == Role::kUnary ? 0 : 1);
}

std::span<const TensorSpec> detokenizer_inputs() { return kDetokenizerInputs; }

void read_model_config(const Json& config, ModelSettings& settings) {
  const Json& parameters = config["parameters"];
  const auto parameter = [&](std::string_view key, std::string otherwise) {
    return parameters[key]["string_value"].value_or<std::string>(std::move(otherwise));
  };

  const std::string role = parameter("role", "");
  const auto named = std::find_if(std::begin(kRoles), std::end(kRoles),
                                  [&](const RoleSpec& spec) { return role == spec.name; });
  if (named == std::end(kRoles)) {
    std::vector<std::string_view> names;
    for (const RoleSpec& spec : kRoles) names.push_back(spec.name);
    throw InvalidArgument("config.pbtxt: parameters: role", role.empty() ? "nothing" : quote(role),
                          joined(names));
  }
  settings.role = named->role;
  const std::vector<std::string_view> known = named->parameters;
  for (const auto& [key, value] : parameters.as<Json::Object>()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      throw InvalidArgument("config.pbtxt: parameters of role " + role, quote(key), joined(known));
    }
  }

  settings.tokenizer_model = parameter("tokenizer_model", "");
  if (settings.role == Role::kDetokenizer || settings.role == Role::kUnary) {
    settings.dialect = read_dialect(parameter("dialect", "vllm"));
  }
  check_scheduling(config, settings.sender());
  check_features(config);
  if (settings.role == Role::kDetokenizer) {
    check_tensors(config["input"], detokenizer_inputs(), "input");
  } else if (settings.role != Role::kTokenizer && settings.tokenizer_model.empty()) {  // else the tokenizer's
    check_tensors(config["input"], generation_inputs(settings.role), "input");
  }
  check_tensors(config["output"], known_outputs(settings.sender()), "output");

  const char* python = std::getenv("QUIRE_PYTHON");
  settings.python = parameter("python", python != nullptr && *python != '\0' ? python : "python3");
  settings.engine_module = parameter("engine_module", "quire.engine");
  settings.generation_model = parameter("generation_model", "generation");
  settings.served_model_name = parameter(kServedName, settings.name);
  settings.reports_metrics = read_bool(parameter(kReportMetrics, "true"), kReportMetrics);
  if (settings.role == Role::kTokenizer) return read_tokenizer_parameters(parameters, settings);
  const std::string headers = parameter("forwarded_headers", "");
  try {
    if (!headers.empty()) settings.forwarded_headers.emplace(headers, std::regex::icase);
  } catch (const std::regex_error&) {
    throw InvalidArgument("config.pbtxt: parameters: forwarded_headers", quote(headers),
                          "a regular expression");
  }
}

}  // namespace quire::triton
