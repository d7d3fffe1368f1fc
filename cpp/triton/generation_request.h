// A request to the generation model, read from its tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <regex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "abi.h"
#include "model_settings.h"
#include "quire/request.h"

namespace quire::triton {

struct GenerationRequest {
  NewRequest request;                                        // request_id is given by the caller
  std::vector<std::pair<std::string, std::string>> aliases;  // fields that came under another name
  bool stream = false;
  bool acknowledge = false;  // a detokenizer of this server follows and acknowledges each chunk
  std::string vocabulary;    // whose ids the prompt has, see check_vocabulary(); "": not told
  std::string prompt_text;   // stands before the first text
  std::string warnings;      // of the tokenizer, as a STRING tensor's bytes: go with the first text
  // Of role unary: one prompt after the other in prompt_ids, their lengths, and what stands before each
  // answer (nothing, or one for each).
  std::vector<int32_t> row_lengths;
  std::vector<std::string> row_texts;
  // Tensors that become a list in request.params, or a time in request.
  std::vector<int32_t> logit_bias_ids;
  std::vector<float> logit_bias;
  std::vector<int32_t> bad_word_ids;  // one sequence after the other
  std::vector<int32_t> bad_word_lengths;
  int32_t deadline_ms = 0;  // after arrival; 0: none
  bool return_finish_reason = false;
  bool return_stop_reason = false;
  bool return_cumulative_logprob = false;
  bool return_logprobs = false;
  bool return_num_input_tokens = false;
  bool return_num_output_tokens = false;
  bool return_token_ids = false;
  uint32_t outputs = 0;  // that the client asks for by name (outputs.h)
};

// Throws InvalidArgument that names the tensor. Checks what one tensor must be; check_limits() does the rest.
// `role`: kGeneration or kUnary. `tokenized`: a tokenizer's answer, whose outputs stand for the request's
// inputs; those that are no inputs of the role are for others. Null: the request has them itself. `defaults`:
// of what the request leaves out. `forwarded_headers`: names of request parameters that mean nothing here.
GenerationRequest read_generation_request(TRITONBACKEND_Request* request, Role role,
                                          TRITONSERVER_InferenceResponse* tokenized,
                                          const SamplingParams& defaults,
                                          const std::optional<std::regex>& forwarded_headers);

// Sequences of one request to role unary: rows x n.
constexpr size_t kMaxRowSequences = 4096;
// Bytes of one request: as its tensors, and as the rows and sequences that are made of it.
constexpr size_t kMaxRequestBytes = 128 << 20;

// One request for each row of a request to role unary. Throws InvalidArgument when the lengths do not fit,
// and, naming `field`, when there are too many.
std::vector<GenerationRequest> split_rows(const GenerationRequest& request, const char* field);

// Throws ServerError where ids of the vocabulary `given` would mean something else to the engine of
// generation model `name`, whose vocabulary is `own`. Both: a fingerprint, a space, and the model's name. "":
// not told.
void check_vocabulary(std::string_view given, std::string_view own, const std::string& name);

// Throws InvalidArgument: sampling settings out of range, prompt empty, too long, or with ids outside the
// vocabulary.
void check_limits(const GenerationRequest& request, int32_t vocab_size, int32_t max_model_len);

}  // namespace quire::triton
