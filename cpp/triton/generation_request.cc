#include "generation_request.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "api.h"
#include "generation_inputs.h"
#include "outputs.h"
#include "request_parameters.h"

namespace quire::triton {

namespace {

// The tensors that come in pairs, as the lists that they stand for.
void join_pairs(GenerationRequest& result) {
  SamplingParams& params = result.request.params;
  if (result.logit_bias_ids.size() != result.logit_bias.size()) {
    throw InvalidArgument("logit_bias", std::to_string(result.logit_bias.size()) + " values",
                          std::to_string(result.logit_bias_ids.size()) + ", one for each of logit_bias_ids");
  }
  for (size_t i = 0; i < result.logit_bias.size(); ++i) {
    params.logit_bias.push_back({result.logit_bias_ids[i], result.logit_bias[i]});
  }
  auto next = result.bad_word_ids.begin();
  for (const int32_t length : result.bad_word_lengths) {
    if (length < 1 || length > result.bad_word_ids.end() - next) {
      throw InvalidArgument("bad_word_lengths", std::to_string(length),
                            "at least 1, and as many as bad_word_ids has");
    }
    params.bad_word_ids.emplace_back(next, next + length);
    next += length;
  }
  if (next != result.bad_word_ids.end()) {
    throw InvalidArgument("bad_word_lengths",
                          "a sum of " + std::to_string(next - result.bad_word_ids.begin()),
                          std::to_string(result.bad_word_ids.size()) + ", the number of bad_word_ids");
  }
}

// deadline_ms counts from the arrival, which is now unless a stage in front of this one tells.
void set_times(GenerationRequest& result) {
  const auto now = static_cast<int64_t>(now_ns());
  for (const auto& [name, value] : {std::pair("arrival_ns", result.request.arrival_ns),
                                    std::pair("tokenize_ns", result.request.tokenize_ns)}) {
    if (value < 0 || value > now) {
      throw InvalidArgument(name, std::to_string(value),
                            "0 to " + std::to_string(now) + " (now, in nanoseconds of CLOCK_MONOTONIC)");
    }
  }
  if (result.request.arrival_ns == 0) result.request.arrival_ns = now;
  if (result.deadline_ms > 0) {
    result.request.deadline_ns = result.request.arrival_ns + result.deadline_ms * int64_t{1'000'000};
  }
}

size_t num_list_bytes(const SamplingParams& params) {
  size_t num_bytes = params.cache_salt.size() + sizeof(int32_t) * params.stop_token_ids.size() +
                     sizeof(LogitBias) * params.logit_bias.size() +
                     sizeof(int32_t) * params.allowed_token_ids.size();
  for (const std::string& stop : params.stop) num_bytes += sizeof(stop) + stop.size();
  for (const auto& ids : params.bad_word_ids) num_bytes += sizeof(ids) + sizeof(int32_t) * ids.size();
  return num_bytes;
}

void check_rows(const GenerationRequest& request, size_t num_rows, const char* field) {
  const auto n = static_cast<size_t>(std::max(request.request.params.n, 1));
  if (num_rows > kMaxRowSequences || num_rows * n > kMaxRowSequences) {
    throw InvalidArgument(field, std::to_string(num_rows) + " rows with n " + std::to_string(n),
                          "at most " + std::to_string(kMaxRowSequences) + " rows x n");
  }
  const size_t num_bytes = num_rows * num_list_bytes(request.request.params);
  if (num_bytes > kMaxRequestBytes) {
    throw InvalidArgument(field,
                          std::to_string(num_rows) + " rows with " + std::to_string(num_bytes / num_rows) +
                              " bytes of lists each",
                          "at most " + std::to_string(kMaxRequestBytes) + " bytes together");
  }
}

// Each sequence of a prompt repeats its text.
void check_prompt_text(const GenerationRequest& request) {
  size_t num_bytes = 0;
  for (const std::string& text : request.row_texts) num_bytes += text.size();
  const auto n = static_cast<size_t>(std::clamp(request.request.params.n, 1, kMaxSequences));
  if (num_bytes * n <= kMaxRequestBytes) return;
  throw InvalidArgument("prompt_text", std::to_string(num_bytes) + " bytes with n " + std::to_string(n),
                        "at most " + std::to_string(kMaxRequestBytes) + " bytes x n");
}

}  // namespace

GenerationRequest read_generation_request(TRITONBACKEND_Request* request, Role role,
                                          TRITONSERVER_InferenceResponse* tokenized,
                                          const SamplingParams& defaults,
                                          const std::optional<std::regex>& forwarded_headers) {
  GenerationRequest result;
  result.request.params = defaults;
  uint32_t num_inputs = 0;
  check(tokenized != nullptr ? TRITONSERVER_InferenceResponseOutputCount(tokenized, &num_inputs)
                             : TRITONBACKEND_RequestInputCount(request, &num_inputs));
  const auto inputs = generation_inputs(role);
  bool has_ids = false;
  std::vector<std::string_view> names;  // of the tensors
  std::string joined;
  size_t num_bytes = 0;
  for (uint32_t i = 0; i < num_inputs; ++i) {
    const InputTensor tensor =
        tokenized != nullptr ? read_output(tokenized, i) : read_input(request, i, joined);
    num_bytes += tensor.bytes.size();
    if (num_bytes > kMaxRequestBytes) {
      throw InvalidArgument(
          std::string(tensor.name), std::to_string(tensor.bytes.size()) + " bytes",
          "at most " + std::to_string(kMaxRequestBytes) + " bytes in all tensors of a request");
    }
    const auto known = std::find_if(inputs.begin(), inputs.end(),
                                    [&](const GenerationInput& input) { return tensor.name == input.name; });
    if (known == inputs.end() && tokenized != nullptr) continue;
    if (known == inputs.end())
      throw InvalidArgument("input", std::string(tensor.name), "an input of config.pbtxt");
    if (tensor.type != known->type) {
      throw InvalidArgument(known->name, std::string("type ") + TRITONSERVER_DataTypeString(tensor.type),
                            std::string("type ") + TRITONSERVER_DataTypeString(known->type));
    }
    known->set(result, tensor);
    has_ids |= tensor.name == "input_ids";
    names.push_back(tensor.name);
  }
  // A stage in front has read the request parameters, and says when the request came.
  if (result.request.arrival_ns == 0) {
    const auto has_tensor = [&](std::string_view name) {
      return std::find(names.begin(), names.end(), name) != names.end();
    };
    read_request_parameters(request, inputs, has_tensor, forwarded_headers, result);
  }
  if (!has_ids) throw InvalidArgument("input_ids", "nothing", "the ids of the prompt");
  check_prompt_text(result);
  join_pairs(result);
  set_times(result);
  result.outputs = requested_outputs(request, role);
  // Who asks for the numbers alone gets those of the sampled tokens.
  SamplingParams& params = result.request.params;
  if (result.return_logprobs || result.return_cumulative_logprob)
    params.logprobs = params.logprobs.value_or(0);
  if (role == Role::kUnary) {
    if (result.stream)
      throw InvalidArgument("stream", "true", "false (this model answers with one response)");
  } else if (result.row_texts.size() > 1) {
    throw InvalidArgument("prompt_text", std::to_string(result.row_texts.size()) + " strings", "one string");
  } else if (!result.row_texts.empty()) {
    result.prompt_text = std::move(result.row_texts.front());
  }
  return result;
}

std::vector<GenerationRequest> split_rows(const GenerationRequest& request, const char* field) {
  const std::vector<int32_t>& ids = request.request.prompt_ids;
  std::vector<int32_t> lengths = request.row_lengths;
  const bool is_one_prompt = lengths.empty();
  if (is_one_prompt) lengths = {static_cast<int32_t>(ids.size())};
  check_rows(request, lengths.size(), field);
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
    row.aliases = request.aliases;
    row.request.params = request.request.params;
    row.request.priority = request.request.priority;
    row.request.arrival_ns = request.request.arrival_ns;
    row.request.tokenize_ns = request.request.tokenize_ns;
    row.request.deadline_ns = request.request.deadline_ns;
    row.request.return_receipt = request.request.return_receipt;
    row.request.prompt_ids.assign(next, next + lengths[i]);
    next += lengths[i];
    if (!request.row_texts.empty()) row.prompt_text = request.row_texts[i];
    rows.push_back(std::move(row));
  }
  return rows;
}

void check_vocabulary(std::string_view given, std::string_view own, const std::string& name) {
  const auto split = [](std::string_view vocabulary) {
    const size_t space = std::min(vocabulary.find(' '), vocabulary.size());
    const auto rest = vocabulary.substr(std::min(space + 1, vocabulary.size()));
    return std::pair(vocabulary.substr(0, space), "model '" + std::string(rest.substr(0, 200)) + "'");
  };
  const auto [given_fingerprint, given_model] = split(given);
  const auto [own_fingerprint, own_model] = split(own);
  if (given.empty() || own.empty() || given_fingerprint == own_fingerprint) return;
  const bool is_same_name = given_model == own_model;
  throw ServerError(
      TRITONSERVER_ERROR_UNAVAILABLE,
      "vocabulary: got ids of the tokenizer of " + given_model + "; allowed: of " + own_model +
          (is_same_name
               ? " as model '" + name +
                     "' has loaded it (its tokenizer.json has changed since one of the two was "
                     "loaded: load both again)"
               : ", which model '" + name +
                     "' serves (the tokenizer's config.pbtxt names its model in generation_model, the "
                     "ensemble's "
                     "steps must fit together, and a change of model.json needs both loaded again)"));
}

void check_limits(const GenerationRequest& generation, int32_t vocab_size, int32_t max_model_len) {
  const NewRequest& request = generation.request;
  try {
    validate(request.params, vocab_size);
  } catch (const InvalidArgument& error) {
    for (const auto& [field, alias] : generation.aliases) {
      if (field == error.field()) throw error.renamed(alias);
    }
    throw;
  }
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
