// A request to the generation model, read from its tensors.
#pragma once

#include <cstdint>
#include <string>

#include "abi.h"
#include "quire/request.h"

namespace quire::triton {

// Which outputs the client asked for.
enum GenerationOutput : uint8_t {
  kOutputChunk = 1,
  kOutputIds = 2,
  kOutputFinishReason = 4,
  kOutputNumInputTokens = 8,
  kOutputNumOutputTokens = 16,
};

struct GenerationRequest {
  NewRequest request;  // request_id is given by the caller
  bool stream = false;
  bool acknowledge = false;  // a detokenizer of this server follows and acknowledges each chunk
  std::string prompt_text;   // stands before the first text
  std::string warnings;      // of the tokenizer, as a STRING tensor's bytes: go with the first text
  bool return_finish_reason = false;
  bool return_num_input_tokens = false;
  bool return_num_output_tokens = false;
  uint8_t outputs = 0;  // GenerationOutput
};

// `defaults`: of what the request leaves out. Throws InvalidArgument that names the tensor. Checks what one
// tensor must be; check_limits() does the rest.
GenerationRequest read_generation_request(TRITONBACKEND_Request* request, const SamplingParams& defaults);

// Throws InvalidArgument: sampling settings out of range, prompt empty, too long, or with ids outside the
// vocabulary.
void check_limits(const NewRequest& request, int32_t vocab_size, int32_t max_model_len);

}  // namespace quire::triton
