#include "generation_request.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "api.h"
#include "output_table.h"
#include "request_parameters.h"

namespace quire::triton {

namespace {

constexpr uint32_t kChunkOutput = outputs::mask_of({Role::kGeneration}, "chunk");

std::vector<int32_t> get_ids(const InputTensor& tensor) {
  if (tensor.shape.size() != 1) {
    throw InvalidArgument(std::string(tensor.name), "shape " + tensor.shape_text(), "one dimension");
  }
  std::vector<int32_t> ids(tensor.bytes.size() / sizeof(int32_t));
  if (!ids.empty()) std::memcpy(ids.data(), tensor.bytes.data(), ids.size() * sizeof(int32_t));
  return ids;
}

// deadline_ms counts from the arrival, which is now unless a tokenizer tells.
void set_times(GenerationRequest& result) {
  const auto now = static_cast<int64_t>(now_ns());
  for (const auto& [name, value] : {std::pair("arrival_ns", result.tokenized.arrival_ns),
                                    std::pair("tokenize_ns", result.tokenized.tokenize_ns)}) {
    if (value < 0 || value > now) {
      throw InvalidArgument(name, std::to_string(value),
                            "0 to " + std::to_string(now) + " (now, in nanoseconds of CLOCK_MONOTONIC)");
    }
  }
  result.request.arrival_ns = result.tokenized.arrival_ns != 0 ? result.tokenized.arrival_ns : now;
  result.request.tokenize_ns = result.tokenized.tokenize_ns;
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

void check_rows(const GenerationRequest& request, size_t num_prompts, const char* field) {
  const auto n = static_cast<size_t>(std::max(request.request.params.n, 1));
  if (num_prompts > kMaxRequestSequences || num_prompts * n > kMaxRequestSequences) {
    throw InvalidArgument(field, std::to_string(num_prompts) + " prompts with n " + std::to_string(n),
                          "at most " + std::to_string(kMaxRequestSequences) + " prompts x n");
  }
  const size_t num_bytes = num_prompts * num_list_bytes(request.request.params);
  if (num_bytes > kMaxRequestBytes) {
    throw InvalidArgument(field,
                          std::to_string(num_prompts) + " prompts with " +
                              std::to_string(num_bytes / num_prompts) + " bytes of lists each",
                          "at most " + std::to_string(kMaxRequestBytes) + " bytes together");
  }
}

// Each sequence of a prompt repeats its text.
void check_prompt_text(const GenerationRequest& request) {
  size_t num_bytes = 0;
  for (const std::string& text : request.tokenized.prompt_text) num_bytes += text.size();
  const auto n = static_cast<size_t>(std::clamp(request.request.params.n, 1, kMaxSequences));
  if (num_bytes * n <= kMaxRequestBytes) return;
  throw InvalidArgument("prompt_text", std::to_string(num_bytes) + " bytes with n " + std::to_string(n),
                        "at most " + std::to_string(kMaxRequestBytes) + " bytes x n");
}

}  // namespace

GenerationRequest read_generation_request(TRITONBACKEND_Request* request, Sender sender,
                                          TRITONSERVER_InferenceResponse* tokenizer,
                                          const SamplingParams& defaults,
                                          const std::optional<std::regex>& forwarded_headers) {
  GenerationRequest result;
  RequestTensor fields{defaults, {}, {}};
  std::vector<int32_t> prompt_lengths;
  uint32_t num_inputs = 0;
  check(tokenizer != nullptr ? TRITONSERVER_InferenceResponseOutputCount(tokenizer, &num_inputs)
                             : TRITONBACKEND_RequestInputCount(request, &num_inputs));
  const auto inputs = generation_inputs(sender.role);
  bool has_ids = false;
  bool has_request = false;
  std::string joined;
  size_t num_bytes = 0;
  for (uint32_t i = 0; i < num_inputs; ++i) {
    const InputTensor tensor =
        tokenizer != nullptr ? read_output(tokenizer, i) : read_input(request, i, joined);
    num_bytes += tensor.bytes.size();
    if (num_bytes > kMaxRequestBytes) {
      throw InvalidArgument(
          std::string(tensor.name), std::to_string(tensor.bytes.size()) + " bytes",
          "at most " + std::to_string(kMaxRequestBytes) + " bytes in all tensors of a request");
    }
    const auto known = std::find_if(inputs.begin(), inputs.end(),
                                    [&](const TensorSpec& input) { return tensor.name == input.name; });
    if (known == inputs.end() && tokenizer != nullptr) continue;
    if (known == inputs.end())
      throw InvalidArgument("input", std::string(tensor.name), "an input of config.pbtxt");
    if (tensor.type != known->type) {
      throw InvalidArgument(known->name, std::string("type ") + TRITONSERVER_DataTypeString(tensor.type),
                            std::string("type ") + TRITONSERVER_DataTypeString(known->type));
    }
    if (tensor.name == "request") {
      decode_request(tensor.bytes, fields);
      has_request = true;
    } else if (tensor.name == "input_ids") {
      result.request.prompt_ids = get_ids(tensor);
      has_ids = true;
    } else {
      prompt_lengths = get_ids(tensor);
    }
  }
  // Who makes `request` has read the request parameters.
  if (!has_request) read_request_parameters(request, forwarded_headers, fields, result.aliases);
  if (!has_ids) throw InvalidArgument("input_ids", "nothing", "the ids of the prompt");
  if (!prompt_lengths.empty()) fields.tokenized.prompt_lengths = std::move(prompt_lengths);
  static_cast<RequestOptions&>(result) = fields.options;
  result.tokenized = std::move(fields.tokenized);
  SamplingParams& params = result.request.params = std::move(fields.params);
  result.request.priority = result.priority;
  result.request.return_receipt = result.return_receipt;
  if (params.seed == -1) params.seed.reset();
  result.has_logprobs = params.logprobs.has_value();
  // Who asks for the numbers alone gets those of the sampled tokens.
  if (result.return_logprobs || result.return_cumulative_logprob)
    params.logprobs = params.logprobs.value_or(0);
  check_prompt_text(result);
  set_times(result);
  result.outputs = requested_outputs(request, sender);
  // Who wants chunks alone hands them to a detokenizer, whatever a tokenizer says of it: chunks that nobody
  // acknowledges run through its instances side by side, and lose their order.
  if (result.outputs == kChunkOutput) result.tokenized.acknowledge = true;
  const std::vector<std::string>& texts = result.tokenized.prompt_text;
  if (sender.role == Role::kUnary) {
    if (result.stream)
      throw InvalidArgument("stream", "true", "false (this model answers with one response)");
    result.tokenized.acknowledge = false;  // no detokenizer follows
  } else if (!result.tokenized.prompt_lengths.empty()) {
    if (result.tokenized.is_separate) return result;
    throw InvalidArgument("text_input", std::to_string(result.tokenized.prompt_lengths.size()) + " values",
                          "one value (several: ensemble_unary)");
  } else if (texts.size() > 1) {
    throw InvalidArgument("prompt_text", std::to_string(texts.size()) + " strings", "one string");
  } else if (!texts.empty()) {
    result.prompt_text = texts.front();
  }
  return result;
}

std::vector<GenerationRequest> split_prompts(const GenerationRequest& request, const char* field) {
  GenerationRequest shared = request;
  const std::vector<int32_t> ids = std::exchange(shared.request.prompt_ids, {});
  std::vector<int32_t> lengths = std::exchange(shared.tokenized.prompt_lengths, {});
  const std::vector<std::string> texts = std::exchange(shared.tokenized.prompt_text, {});
  const std::vector<std::string> warnings = std::exchange(shared.tokenized.warnings, {});
  const bool is_one_prompt = lengths.empty();
  if (is_one_prompt) lengths = {static_cast<int32_t>(ids.size())};
  check_rows(request, lengths.size(), field);
  int64_t sum = 0;
  for (const int32_t length : lengths) {
    if (length < 1 && !is_one_prompt)
      throw InvalidArgument("prompt_lengths", std::to_string(length), "at least 1");
    sum += length;
  }
  if (sum != static_cast<int64_t>(ids.size())) {
    throw InvalidArgument("prompt_lengths", "a sum of " + std::to_string(sum),
                          std::to_string(ids.size()) + ", the number of input_ids");
  }
  if (!texts.empty() && texts.size() != lengths.size()) {
    throw InvalidArgument("prompt_text", std::to_string(texts.size()) + " strings",
                          std::to_string(lengths.size()) + ", one for each of prompt_lengths");
  }
  std::vector<GenerationRequest> prompts;
  prompts.reserve(lengths.size());
  auto next = ids.begin();
  for (size_t i = 0; i < lengths.size(); ++i) {
    GenerationRequest prompt = shared;
    prompt.batch_index = static_cast<uint32_t>(i);
    prompt.request.prompt_ids.assign(next, next + lengths[i]);
    next += lengths[i];
    if (!texts.empty()) prompt.prompt_text = texts[i];
    prompts.push_back(std::move(prompt));
  }
  prompts.front().tokenized.warnings = warnings;
  return prompts;
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
