#include "generation_request.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "api.h"

namespace quire::triton {

namespace {

void expect_scalar(const InputTensor& tensor) {
  if (tensor.num_elements() != 1) {
    throw InvalidArgument(std::string(tensor.name), "shape " + tensor.shape_text(), "shape [1]");
  }
}

template <class T>
T get_scalar(const InputTensor& tensor) {
  expect_scalar(tensor);
  QUIRE_CHECK(tensor.bytes.size() == sizeof(T), tensor.name << " has " << tensor.bytes.size() << " bytes");
  T value;
  std::memcpy(&value, tensor.bytes.data(), sizeof(T));
  return value;
}

template <>
bool get_scalar<bool>(const InputTensor& tensor) {
  return get_scalar<uint8_t>(tensor) != 0;  // any byte may arrive; only 0 and 1 are values of bool
}

std::vector<int32_t> get_ids(const InputTensor& tensor) {
  if (tensor.shape.size() != 1) {
    throw InvalidArgument(std::string(tensor.name), "shape " + tensor.shape_text(), "one dimension");
  }
  std::vector<int32_t> ids(tensor.bytes.size() / sizeof(int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), tensor.bytes.data(), ids.size() * sizeof(int32_t));
  return ids;
}

// A STRING tensor: each element is a u32 length and its bytes.
std::vector<std::string> get_strings(const InputTensor& tensor) {
  std::vector<std::string> strings;
  std::string_view rest = tensor.bytes;
  while (!rest.empty()) {
    uint32_t size = 0;
    if (rest.size() >= sizeof(size)) std::memcpy(&size, rest.data(), sizeof(size));
    if (rest.size() < sizeof(size) || rest.size() - sizeof(size) < size) {
      throw InvalidArgument(std::string(tensor.name), "a damaged STRING tensor",
                            "elements of length and bytes");
    }
    strings.emplace_back(rest.substr(sizeof(size), size));
    rest.remove_prefix(sizeof(size) + size);
  }
  if (static_cast<int64_t>(strings.size()) != tensor.num_elements()) {
    throw InvalidArgument(std::string(tensor.name), std::to_string(strings.size()) + " strings",
                          "as many as its shape " + tensor.shape_text() + " says");
  }
  return strings;
}

void set_field(GenerationRequest& request, const InputTensor& tensor) {
  SamplingParams& params = request.request.params;
  const std::string_view name = tensor.name;
  if (name == "input_ids") {
    request.request.prompt_ids = get_ids(tensor);
  } else if (name == "max_tokens") {
    params.max_tokens = get_scalar<int32_t>(tensor);
    // The core's 0, "fill the context", is said here by leaving the tensor out.
    if (params.max_tokens < 1)
      throw InvalidArgument("max_tokens", std::to_string(params.max_tokens), "at least 1");
  } else if (name == "min_tokens") {
    params.min_tokens = get_scalar<int32_t>(tensor);
  } else if (name == "temperature") {
    params.temperature = get_scalar<float>(tensor);
  } else if (name == "top_p") {
    params.top_p = get_scalar<float>(tensor);
  } else if (name == "top_k") {
    params.top_k = get_scalar<int32_t>(tensor);
  } else if (name == "seed") {
    params.seed = get_scalar<int64_t>(tensor);
    params.has_seed = true;
  } else if (name == "ignore_eos") {
    params.ignore_eos = get_scalar<bool>(tensor);
  } else if (name == "skip_special_tokens") {
    params.skip_special_tokens = get_scalar<bool>(tensor);
  } else if (name == "include_stop_str_in_output") {
    params.include_stop_str_in_output = get_scalar<bool>(tensor);
  } else if (name == "stop") {
    params.stop = get_strings(tensor);
  } else if (name == "stop_token_ids") {
    params.stop_token_ids = get_ids(tensor);
  } else if (name == "stream") {
    request.stream = get_scalar<bool>(tensor);
  } else if (name == "prompt_text") {
    request.row_texts = get_strings(tensor);
  } else if (name == "warnings") {
    get_strings(tensor);  // for its checks
    request.warnings = tensor.bytes;
  } else if (name == "row_lengths") {
    request.row_lengths = get_ids(tensor);
  } else if (name == "acknowledge") {
    request.acknowledge = get_scalar<bool>(tensor);
  } else if (name == "return_finish_reason") {
    request.return_finish_reason = get_scalar<bool>(tensor);
  } else if (name == "return_num_input_tokens") {
    request.return_num_input_tokens = get_scalar<bool>(tensor);
  } else if (name == "return_num_output_tokens") {
    request.return_num_output_tokens = get_scalar<bool>(tensor);
  } else {
    QUIRE_CHECK(false, "no field for the known input " << name);
  }
}

uint8_t requested_outputs(TRITONBACKEND_Request* request) {
  constexpr std::string_view kNames[] = {
      "chunk", "output_ids", "finish_reason", "num_input_tokens", "num_output_tokens", "index"};
  uint8_t outputs = 0;
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, i, &name));
    const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
    if (found != std::end(kNames)) outputs |= static_cast<uint8_t>(1U << (found - kNames));
  }
  return outputs;
}

}  // namespace

GenerationRequest read_generation_request(TRITONBACKEND_Request* request, Role role,
                                          const SamplingParams& defaults) {
  GenerationRequest result;
  result.request.params = defaults;
  uint32_t num_inputs = 0;
  check(TRITONBACKEND_RequestInputCount(request, &num_inputs));
  bool has_ids = false;
  std::string joined;
  for (uint32_t i = 0; i < num_inputs; ++i) {
    const InputTensor tensor = read_input(request, i, joined);
    const auto known = known_inputs(role);
    const auto spec =
        std::find_if(known.begin(), known.end(), [&](const TensorSpec& s) { return tensor.name == s.name; });
    if (spec == known.end())
      throw InvalidArgument("input", std::string(tensor.name), "an input of config.pbtxt");
    if (tensor.type != spec->type) {
      throw InvalidArgument(spec->name, std::string("type ") + TRITONSERVER_DataTypeString(tensor.type),
                            std::string("type ") + TRITONSERVER_DataTypeString(spec->type));
    }
    if (role == Role::kGeneration && tensor.name == "prompt_text") expect_scalar(tensor);
    set_field(result, tensor);
    has_ids |= tensor.name == "input_ids";
  }
  if (!has_ids) throw InvalidArgument("input_ids", "nothing", "the ids of the prompt");
  result.outputs = requested_outputs(request);
  if (role == Role::kUnary) {
    if (result.stream)
      throw InvalidArgument("stream", "true", "false (this model answers with one response)");
  } else if (!result.row_texts.empty()) {
    result.prompt_text = std::move(result.row_texts.front());
  }
  return result;
}

std::vector<GenerationRequest> split_rows(const GenerationRequest& request) {
  const std::vector<int32_t>& ids = request.request.prompt_ids;
  std::vector<int32_t> lengths = request.row_lengths;
  const bool is_one_prompt = lengths.empty();
  if (is_one_prompt) lengths = {static_cast<int32_t>(ids.size())};
  int64_t sum = 0;
  for (const int32_t length : lengths) {
    if (length < 1 && !is_one_prompt)
      throw InvalidArgument("row_lengths", std::to_string(length), "at least 1");
    sum += length;
  }
  if (sum != static_cast<int64_t>(ids.size())) {
    throw InvalidArgument("row_lengths", "a sum of " + std::to_string(sum),
                          std::to_string(ids.size()) + ", the number of input_ids");
  }
  if (!request.row_texts.empty() && request.row_texts.size() != lengths.size()) {
    throw InvalidArgument("prompt_text", std::to_string(request.row_texts.size()) + " strings",
                          std::to_string(lengths.size()) + ", one for each of row_lengths");
  }
  std::vector<GenerationRequest> rows;
  rows.reserve(lengths.size());
  auto next = ids.begin();
  for (size_t i = 0; i < lengths.size(); ++i) {
    GenerationRequest row;
    row.request.params = request.request.params;
    row.request.prompt_ids.assign(next, next + lengths[i]);
    next += lengths[i];
    if (!request.row_texts.empty()) row.prompt_text = request.row_texts[i];
    rows.push_back(std::move(row));
  }
  return rows;
}

void check_limits(const NewRequest& request, int32_t vocab_size, int32_t max_model_len) {
  validate(request.params, vocab_size);
  const auto& ids = request.prompt_ids;
  // One place is left for the first token of the answer.
  const auto max_prompt = static_cast<size_t>(max_model_len - 1);
  if (ids.empty() || ids.size() > max_prompt) {
    throw InvalidArgument("input_ids", std::to_string(ids.size()) + " ids",
                          "1 to " + std::to_string(max_prompt) + " ids (max_model_len " +
                              std::to_string(max_model_len) + ", one of them for the answer)");
  }
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return id < 0 || id >= vocab_size; });
  if (bad != ids.end()) {
    throw InvalidArgument("input_ids",
                          "id " + std::to_string(*bad) + " at " + std::to_string(bad - ids.begin()),
                          "ids 0 to " + std::to_string(vocab_size - 1));
  }
}

}  // namespace quire::triton
