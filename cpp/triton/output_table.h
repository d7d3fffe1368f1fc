// The table of outputs: name, type, who sends it, how it is written, when it is wanted, when it is there.
//
// model_settings.cc reads names and types in constant expressions only: `quire check` runs it without a
// server, so nothing there may need the functions that write.
#pragma once

#include <algorithm>
#include <cstring>
#include <string_view>

#include "api.h"
#include "outputs.h"

namespace quire::triton::outputs {

constexpr uint32_t bit(Sender sender) {
  return 1U << (2 * static_cast<uint32_t>(sender.role) + static_cast<uint32_t>(sender.dialect));
}
constexpr uint32_t kGeneration = bit({Role::kGeneration});
constexpr uint32_t kVllmStream = bit({Role::kDetokenizer, Dialect::kVllm});
constexpr uint32_t kVllm = kVllmStream | bit({Role::kUnary, Dialect::kVllm});
constexpr uint32_t kTrtllm =
    bit({Role::kDetokenizer, Dialect::kTrtllm}) | bit({Role::kUnary, Dialect::kTrtllm});
constexpr uint32_t kTexts = kVllm | kTrtllm;
constexpr uint32_t kStreams = kGeneration | kVllmStream;
constexpr uint32_t kOurs = kGeneration | kVllm;
constexpr uint32_t kAll = kGeneration | kTexts;

constexpr auto kBytes = TRITONSERVER_TYPE_UINT8;
constexpr auto kInt32 = TRITONSERVER_TYPE_INT32;
constexpr auto kUint32 = TRITONSERVER_TYPE_UINT32;
constexpr auto kFloat = TRITONSERVER_TYPE_FP32;
constexpr auto kString = TRITONSERVER_TYPE_BYTES;

// How many ids output_ids has of it in TensorRT-LLM's form.
inline int32_t num_ids_with_prompt(const Answer& answer) {
  return static_cast<int32_t>(answer.prompt_ids.size() + answer.ids.size());
}

// [answers] of kValue(answer): numbers of the output's type, or strings.
template <auto kValue>
void each(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  response.add_values(spec.name, spec.type, answers.all.size(),
                      [&](size_t i) -> decltype(auto) { return kValue(answers.all[i]); });
}

// [prompts] of kValue(the first answer of the prompt).
template <auto kValue>
void each_prompt(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  response.add_values(
      spec.name, spec.type, answers.all.size() / answers.num_per_prompt,
      [&](size_t i) -> decltype(auto) { return kValue(answers.all[i * answers.num_per_prompt]); });
}

inline void chunks(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  const std::string bytes = write_chunks(answers.all);
  char* const out = response.add(spec.name, spec.type, static_cast<int64_t>(bytes.size()), bytes.size());
  std::memcpy(out, bytes.data(), bytes.size());
}

// Once in a response.
inline void warnings(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  const std::vector<std::string>& texts = answers.all.front().warnings;
  response.add_values(spec.name, spec.type, texts.size(),
                      [&](size_t i) { return std::string_view(texts[i]); });
}

// [ids]: those of each answer, one after the other.
inline void ids(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  size_t count = 0;
  for (const Answer& answer : answers.all) count += answer.ids.size();
  char* out = response.add(spec.name, spec.type, static_cast<int64_t>(count), count * sizeof(int32_t));
  for (const Answer& answer : answers.all) {
    const std::span<const int32_t> of_answer = answer.ids;
    if (!of_answer.empty()) std::memcpy(out, of_answer.data(), of_answer.size_bytes());
    out += of_answer.size_bytes();
  }
}

// [places, logprobs of a place] of one member of Logprob.
template <auto kMember>
void write_logprobs(ResponseBuilder& response, const OutputSpec& spec, std::span<const Answer> answers,
                    std::vector<Logprob> Chunk::* entries, uint32_t num_per_place) {
  size_t count = 0;
  for (const Answer& answer : answers) count += (answer.*entries).size();
  const int64_t shape[] = {static_cast<int64_t>(count / num_per_place), num_per_place};
  constexpr size_t kSize = sizeof(Logprob().*kMember);
  char* out = response.add(spec.name, spec.type, shape, count * kSize);
  for (const Answer& answer : answers) {
    for (const Logprob& logprob : answer.*entries) {
      std::memcpy(out, &(logprob.*kMember), kSize);
      out += kSize;
    }
  }
}

template <auto kMember>
void logprobs(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  write_logprobs<kMember>(response, spec, answers.all, &Chunk::logprobs, answers.all.front().num_per_id);
}

template <auto kMember>
void prompt_logprobs(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  write_logprobs<kMember>(response, spec, answers.all.first(1), &Chunk::prompt_logprobs,
                          answers.all.front().num_per_prompt_place);
}

// [answers, 1] of kValue(answer), where 1 is what TensorRT-LLM has for its beams.
template <auto kValue>
void each_beam(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  using T = std::remove_cvref_t<decltype(kValue(answers.all[0]))>;
  const int64_t shape[] = {static_cast<int64_t>(answers.all.size()), 1};
  char* out = response.add(spec.name, spec.type, shape, answers.all.size() * sizeof(T));
  for (const Answer& answer : answers.all) {
    const T& value = kValue(answer);
    std::memcpy(out, &value, sizeof(value));
    out += sizeof(value);
  }
}

// [answers, 1, ids of the longest]: the prompt's ids where they are asked for, then the new ones; -1 after
// the end of a shorter one.
inline void beam_ids(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  size_t length = 0;
  for (const Answer& answer : answers.all) length = std::max<size_t>(length, num_ids_with_prompt(answer));
  const int64_t shape[] = {static_cast<int64_t>(answers.all.size()), 1, static_cast<int64_t>(length)};
  const size_t row_size = length * sizeof(int32_t);
  char* out = response.add(spec.name, spec.type, shape, answers.all.size() * row_size);
  for (const Answer& answer : answers.all) {
    std::memset(out, -1, row_size);
    const std::span<const int32_t> prompt = answer.prompt_ids;
    const std::span<const int32_t> ids = answer.ids;
    if (!prompt.empty()) std::memcpy(out, prompt.data(), prompt.size_bytes());
    if (!ids.empty()) std::memcpy(out + prompt.size_bytes(), ids.data(), ids.size_bytes());
    out += row_size;
  }
}

// [answers, 1, ids of the longest] floats: the logprob of each id alone; 0 where there is none.
inline void token_logprobs(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers) {
  size_t length = 0;
  for (const Answer& answer : answers.all) length = std::max(length, answer.ids.size());
  const int64_t shape[] = {static_cast<int64_t>(answers.all.size()), 1, static_cast<int64_t>(length)};
  const size_t row_size = length * sizeof(float);
  char* out = response.add(spec.name, spec.type, shape, answers.all.size() * row_size);
  for (const Answer& answer : answers.all) {
    std::memset(out, 0, row_size);
    const std::span<const Logprob> entries = answer.logprobs;
    const uint32_t num_per_id = answer.num_per_id;
    for (size_t i = 0; i * num_per_id < entries.size(); ++i) {
      std::memcpy(out + i * sizeof(float), &entries[i * num_per_id].logprob, sizeof(float));
    }
    out += row_size;
  }
}

template <auto kMember>
const auto& member(const Answer& answer) {
  return answer.*kMember;
}
template <auto kMember>
const auto& usage(const Answer& answer) {
  return answer.usage.*kMember;
}
inline uint32_t num_ids(const Answer& answer) { return static_cast<uint32_t>(answer.ids.size()); }
inline std::string_view finish_reason(const Answer& answer) { return to_string(answer.finish_reason); }
// "None" before the end, as Triton's vLLM backend has it.
inline std::string_view finish_reason_or_none(const Answer& answer) {
  return answer.finish_reason == FinishReason::kNone ? "None" : finish_reason(answer);
}

template <auto kField>
bool wants(const GenerationRequest& request) {
  return request.*kField;
}
inline bool wants_warnings(const GenerationRequest& request) { return !request.tokenized.warnings.empty(); }
inline bool wants_index(const GenerationRequest& request) {
  return request.stream && request.request.params.n > 1;
}
inline bool wants_prompt_logprobs(const GenerationRequest& request) {
  return request.request.params.prompt_logprobs.has_value();
}

inline bool has_warnings(const Answers& answers) { return !answers.all.front().warnings.empty(); }
inline bool has_receipt(const Answers& answers) {
  return std::any_of(answers.all.begin(), answers.all.end(),
                     [](const Answer& answer) { return !answer.receipt.empty(); });
}
inline bool has_logprobs(const Answers& answers) { return answers.all.front().num_per_id > 0; }
inline bool has_prompt_logprobs(const Answers& answers) {
  return answers.all.front().num_per_prompt_place > 0;
}

using Request = GenerationRequest;

// clang-format off
inline constexpr OutputSpec kTable[] = {
    {"chunk", kBytes, kGeneration, chunks},
    {"text_output", kString, kTexts, each<member<&Answer::text>>},
    {"warnings", kString, kTexts, warnings, wants_warnings, has_warnings},
    {"output_ids", kInt32, kOurs, ids, wants<&Request::return_token_ids>},
    {"output_ids", kInt32, kTrtllm, beam_ids, wants<&Request::return_token_ids>},
    {"sequence_length", kInt32, kTrtllm, each_beam<num_ids_with_prompt>, wants<&Request::return_token_ids>},
    {"batch_index", kInt32, kTrtllm, each_beam<member<&Chunk::batch_index>>},
    {"sequence_index", kInt32, kTrtllm, each_beam<member<&Chunk::index>>},
    {"index", kUint32, kStreams, each<member<&Chunk::index>>, wants_index},
    {"finish_reason", kString, kGeneration, each<finish_reason>, wants<&Request::return_finish_reason>},
    {"finish_reason", kString, kTexts, each<finish_reason_or_none>, wants<&Request::return_finish_reason>},
    {"num_input_tokens", kUint32, kAll, each_prompt<usage<&Usage::num_prompt_tokens>>,
     wants<&Request::return_num_input_tokens>},
    {"num_output_tokens", kUint32, kAll, each<num_ids>, wants<&Request::return_num_output_tokens>},
    {"stop_reason", kString, kAll, each<member<&Chunk::stop_reason>>, wants<&Request::return_stop_reason>},
    {"cumulative_logprob", kFloat, kOurs, each<member<&Chunk::cumulative_logprob>>, wants<&Request::return_cumulative_logprob>,
     has_logprobs},
    {"cum_log_probs", kFloat, kTrtllm, each_beam<member<&Chunk::cumulative_logprob>>, wants<&Request::return_cumulative_logprob>},
    {"logprob_ids", kInt32, kGeneration, logprobs<&Logprob::token_id>, nullptr, has_logprobs},
    {"logprobs", kFloat, kGeneration, logprobs<&Logprob::logprob>, nullptr, has_logprobs},
    {"logprob_ranks", kInt32, kGeneration, logprobs<&Logprob::rank>, nullptr, has_logprobs},
    {"prompt_logprob_ids", kInt32, kGeneration, prompt_logprobs<&Logprob::token_id>, nullptr, has_prompt_logprobs},
    {"prompt_logprobs", kFloat, kGeneration, prompt_logprobs<&Logprob::logprob>, nullptr, has_prompt_logprobs},
    {"prompt_logprob_ranks", kInt32, kGeneration, prompt_logprobs<&Logprob::rank>, nullptr, has_prompt_logprobs},
    {"logprobs", kString, kVllm, each<member<&Answer::logprobs_json>>, wants<&Request::return_logprobs>},
    {"prompt_logprobs", kString, kVllm, each_prompt<member<&Answer::prompt_logprobs_json>>, wants_prompt_logprobs,
     has_prompt_logprobs},
    {"output_log_probs", kFloat, kTrtllm, token_logprobs, wants<&Request::return_logprobs>},
    {"receipt", kString, kAll, each<member<&Answer::receipt>>, wants<&Request::return_receipt>, has_receipt},
};
// clang-format on
static_assert(std::size(kTable) <= 32, "a mask has 32 bits");

constexpr bool has(Sender sender, const OutputSpec& spec) { return (spec.senders & bit(sender)) != 0; }

// The bit of an output in a mask.
consteval uint32_t mask_of(Sender sender, std::string_view name) {
  for (size_t i = 0; i < std::size(kTable); ++i) {
    if (has(sender, kTable[i]) && kTable[i].name == name) return 1U << i;
  }
  throw "no such output";  // does not compile
}

}  // namespace quire::triton::outputs
