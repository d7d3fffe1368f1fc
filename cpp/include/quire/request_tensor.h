// The tensor `request`, which goes from a tokenizer to generation beside the ids: the fields that a request
// gives and what the tokenizer knows of it. Fields that it leaves out keep the engine's defaults.
//
//   u32 version | u64 which fields are given, a bit for each in the order of for_each_field() | their values
//
// Values are encoded as on the wire to the engine (wire_structs.h). The version is a hash of the fields'
// names, so that each change of them makes another. There is nothing to forge: whoever calls generation may
// give every field by name, and no field speaks of another request.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "quire/sampling.h"

namespace quire {

// What a tokenizer knows of a request. Not fields of a client's.
struct TokenizedRequest {
  int64_t arrival_ns = 0;                // CLOCK_MONOTONIC; 0: now
  int64_t tokenize_ns = 0;               // how long the tokenizer took
  bool acknowledge = false;              // a detokenizer of this server follows and acknowledges each chunk
  std::string vocabulary;                // whose ids the prompt has, see check_vocabulary(); "": not told
  std::vector<int32_t> prompt_lengths;   // of several prompts, one after the other in input_ids
  std::vector<std::string> prompt_text;  // stands before each answer: nothing, or one text for each prompt
  std::vector<std::string> warnings;     // for the client, with the first text
  bool is_separate = false;              // each sequence has a response of its own, also without stream
  bool includes_prompt_ids = false;      // output_ids begins with the prompt's
};
QUIRE_MEMBERS(TokenizedRequest,
              QUIRE_OPTIONAL(arrival_ns, tokenize_ns, acknowledge, vocabulary, prompt_lengths, prompt_text,
                             warnings, is_separate, includes_prompt_ids));

struct RequestTensor {
  SamplingParams params;
  RequestOptions options;
  TokenizedRequest tokenized;
};

// Calls visit(name, value) for each field that a client may give.
template <class Tensor, class Visit>
constexpr void for_each_client_field(Tensor& tensor, Visit&& visit) {
  for_each_member<SamplingParams>([&](const auto& m) { visit(m.name, tensor.params.*m.pointer); });
  for_each_member<RequestOptions>([&](const auto& m) { visit(m.name, tensor.options.*m.pointer); });
}

template <class Tensor, class Visit>
constexpr void for_each_field(Tensor& tensor, Visit&& visit) {
  for_each_client_field(tensor, visit);
  for_each_member<TokenizedRequest>([&](const auto& m) { visit(m.name, tensor.tokenized.*m.pointer); });
}

// Throws InvalidArgument for a value that a request may not give, but that the core takes for "not given".
// spelled: the name that the client uses.
template <class T>
void check_given(std::string_view name, const std::string& spelled, const T& value) {
  require_in_range(name, spelled, value);
  if constexpr (requires { value.empty(); }) {
    if (value.empty() && std::ranges::find(fields::kNeverEmpty, name) != std::end(fields::kNeverEmpty)) {
      throw InvalidArgument(spelled, "nothing in it", "at least one element or character");
    }
  }
}

// The tensor with those fields whose bit is set in `given`.
std::string encode_request(const RequestTensor& tensor, uint64_t given);
// Sets the fields that `bytes` gives. Throws InvalidArgument that names `request` for bytes that
// encode_request() cannot have made, and the field for a value that it may not have.
void decode_request(std::string_view bytes, RequestTensor& tensor);

}  // namespace quire
