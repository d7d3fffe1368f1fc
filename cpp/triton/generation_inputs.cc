#include "generation_inputs.h"

#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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

template <class T>
std::vector<T> get_array(const InputTensor& tensor) {
  if (tensor.shape.size() != 1) {
    throw InvalidArgument(std::string(tensor.name), "shape " + tensor.shape_text(), "one dimension");
  }
  std::vector<T> values(tensor.bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), values.size() * sizeof(T));
  return values;
}

// Calls take(string) for each element of a STRING tensor, which is a u32 length and its bytes.
template <class Take>
void for_each_string(const InputTensor& tensor, Take&& take) {
  std::string_view rest = tensor.bytes;
  int64_t count = 0;
  while (!rest.empty()) {
    uint32_t size = 0;
    if (rest.size() >= sizeof(size)) std::memcpy(&size, rest.data(), sizeof(size));
    if (rest.size() < sizeof(size) || rest.size() - sizeof(size) < size) {
      throw InvalidArgument(std::string(tensor.name), "a damaged STRING tensor",
                            "elements of length and bytes");
    }
    take(rest.substr(sizeof(size), size));
    rest.remove_prefix(sizeof(size) + size);
    ++count;
  }
  if (count != tensor.num_elements()) {
    throw InvalidArgument(std::string(tensor.name), std::to_string(count) + " strings",
                          "as many as its shape " + tensor.shape_text() + " says");
  }
}

std::vector<std::string> get_strings(const InputTensor& tensor) {
  std::vector<std::string> strings;
  for_each_string(tensor, [&](std::string_view string) { strings.emplace_back(string); });
  return strings;
}

// The value of `tensor` as the type of what it sets.
void get(const InputTensor& tensor, bool& value) { value = get_scalar<bool>(tensor); }
void get(const InputTensor& tensor, int32_t& value) { value = get_scalar<int32_t>(tensor); }
void get(const InputTensor& tensor, int64_t& value) { value = get_scalar<int64_t>(tensor); }
void get(const InputTensor& tensor, float& value) { value = get_scalar<float>(tensor); }
template <class T>
void get(const InputTensor& tensor, std::optional<T>& value) {
  value = get_scalar<T>(tensor);
}
void get(const InputTensor& tensor, std::string& value) {
  expect_scalar(tensor);
  value = std::move(get_strings(tensor).front());
}
void get(const InputTensor& tensor, std::vector<int32_t>& value) { value = get_array<int32_t>(tensor); }
void get(const InputTensor& tensor, std::vector<float>& value) { value = get_array<float>(tensor); }
void get(const InputTensor& tensor, std::vector<std::string>& value) { value = get_strings(tensor); }

// Sets a member of SamplingParams, NewRequest or GenerationRequest.
template <auto Member>
void set(GenerationRequest& request, const InputTensor& tensor) {
  if constexpr (requires { request.request.params.*Member; }) {
    get(tensor, request.request.params.*Member);
  } else if constexpr (requires { request.request.*Member; }) {
    get(tensor, request.request.*Member);
  } else {
    get(tensor, request.*Member);
  }
}

// As set(), of a field that the core does not look at, or that it knows to have a value for "not given".
template <auto Member, const fields::IntField& kField>
void set_given(GenerationRequest& request, const InputTensor& tensor) {
  int32_t value = 0;
  get(tensor, value);
  if (!kField.contains(value)) {
    throw InvalidArgument(std::string(tensor.name), std::to_string(value), kField.allowed);
  }
  set<Member>(request, tensor);
}

void set_seed(GenerationRequest& request, const InputTensor& tensor) {
  set<&SamplingParams::seed>(request, tensor);
  if (request.request.params.seed == -1) request.request.params.seed.reset();
}

void set_cache_salt(GenerationRequest& request, const InputTensor& tensor) {
  set<&SamplingParams::cache_salt>(request, tensor);
  if (request.request.params.cache_salt.empty()) {
    throw InvalidArgument(std::string(tensor.name), "an empty string", "a non-empty string");
  }
}

void set_allowed_token_ids(GenerationRequest& request, const InputTensor& tensor) {
  set<&SamplingParams::allowed_token_ids>(request, tensor);
  if (request.request.params.allowed_token_ids.empty()) {
    throw InvalidArgument(std::string(tensor.name), "no ids", "at least one id");
  }
}

void set_stop(GenerationRequest& request, const InputTensor& tensor) {
  // Sizes before copies.
  std::vector<size_t> sizes;
  for_each_string(tensor, [&](std::string_view string) {
    if (sizes.size() <= kMaxStop) sizes.push_back(string.size());
  });
  try {
    require_stop_size(sizes.size(), [&](size_t i) { return sizes[i]; });
  } catch (const InvalidArgument& error) {
    throw error.renamed(std::string(tensor.name));
  }
  set<&SamplingParams::stop>(request, tensor);
}

void set_warnings(GenerationRequest& request, const InputTensor& tensor) {
  for_each_string(tensor, [](std::string_view) {});  // for its checks
  request.warnings = tensor.bytes;
}

using Params = SamplingParams;
using Request = GenerationRequest;

constexpr auto kBool = TRITONSERVER_TYPE_BOOL;
constexpr auto kInt32 = TRITONSERVER_TYPE_INT32;
constexpr auto kInt64 = TRITONSERVER_TYPE_INT64;
constexpr auto kFloat = TRITONSERVER_TYPE_FP32;
constexpr auto kString = TRITONSERVER_TYPE_BYTES;

constexpr bool kList = true;
constexpr bool kScalar = false;
constexpr bool kInternal = false;  // no field of a client's

// Role unary has all but the last, role generation all but the first.
constexpr GenerationInput kInputs[] = {
    {"row_lengths", kInt32, set<&Request::row_lengths>, kList, kInternal},
    {"input_ids", kInt32, set<&NewRequest::prompt_ids>, kList, kInternal},
    {"n", kInt32, set<&Params::n>},
    {"max_tokens", kInt32, set_given<&Params::max_tokens, fields::kMaxTokens>},
    {"min_tokens", kInt32, set<&Params::min_tokens>},
    {"temperature", kFloat, set<&Params::temperature>},
    {"top_p", kFloat, set<&Params::top_p>},
    {"top_k", kInt32, set<&Params::top_k>},
    {"min_p", kFloat, set<&Params::min_p>},
    {"presence_penalty", kFloat, set<&Params::presence_penalty>},
    {"frequency_penalty", kFloat, set<&Params::frequency_penalty>},
    {"repetition_penalty", kFloat, set<&Params::repetition_penalty>},
    {"seed", kInt64, set_seed},
    {"logit_bias_ids", kInt32, set<&Request::logit_bias_ids>, kList, kInternal},
    {"logit_bias", kFloat, set<&Request::logit_bias>, kList},
    {"allowed_token_ids", kInt32, set_allowed_token_ids, kList},
    {"bad_word_ids", kInt32, set<&Request::bad_word_ids>, kList, kInternal},
    {"bad_word_lengths", kInt32, set<&Request::bad_word_lengths>, kList, kInternal},
    {"stop", kString, set_stop, kList},
    {"stop_token_ids", kInt32, set<&Params::stop_token_ids>, kList},
    {"ignore_eos", kBool, set<&Params::ignore_eos>},
    {"include_stop_str_in_output", kBool, set<&Params::include_stop_str_in_output>},
    {"skip_special_tokens", kBool, set<&Params::skip_special_tokens>},
    {"detokenize", kBool, set<&Params::detokenize>},
    {"logprobs", kInt32, set_given<&Params::logprobs, fields::kLogprobs>},
    {"prompt_logprobs", kInt32, set_given<&Params::prompt_logprobs, fields::kPromptLogprobs>},
    {"stream_interval", kInt32, set<&Params::stream_interval>},
    {"cache_salt", kString, set_cache_salt},
    {"priority", kInt32, set<&NewRequest::priority>},
    {"deadline_ms", kInt32, set_given<&Request::deadline_ms, fields::kDeadlineMs>},
    {"arrival_ns", kInt64, set<&NewRequest::arrival_ns>, kScalar, kInternal},
    {"tokenize_ns", kInt64, set<&NewRequest::tokenize_ns>, kScalar, kInternal},
    {"stream", kBool, set<&Request::stream>},
    {"vocabulary", kString, set<&Request::vocabulary>, kScalar, kInternal},
    {"prompt_text", kString, set<&Request::row_texts>, kList, kInternal},
    {"warnings", kString, set_warnings, kList, kInternal},
    {"return_finish_reason", kBool, set<&Request::return_finish_reason>},
    {"return_stop_reason", kBool, set<&Request::return_stop_reason>},
    {"return_cumulative_logprob", kBool, set<&Request::return_cumulative_logprob>},
    {"return_logprobs", kBool, set<&Request::return_logprobs>},
    {"return_num_input_tokens", kBool, set<&Request::return_num_input_tokens>},
    {"return_num_output_tokens", kBool, set<&Request::return_num_output_tokens>},
    {"return_token_ids", kBool, set<&Request::return_token_ids>},
    {"return_receipt", kBool, set<&NewRequest::return_receipt>},
    {"acknowledge", kBool, set<&Request::acknowledge>, kScalar, kInternal},
};

}  // namespace

std::span<const GenerationInput> generation_inputs(Role role) {
  const std::span all(kInputs);
  return role == Role::kUnary ? all.first(all.size() - 1) : all.subspan(1);
}

}  // namespace quire::triton
