// A request to the generation model, read from its tensors and parameters.
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
#include "quire/request_tensor.h"

namespace quire::triton {

struct GenerationRequest : RequestOptions {
  NewRequest request;                                        // request_id is given by the caller
  std::vector<std::pair<std::string, std::string>> aliases;  // fields that came under another name
  TokenizedRequest tokenized;
  std::string prompt_text;    // stands before the first text
  uint32_t outputs = 0;       // that the client asks for by name (outputs.h)
  uint32_t batch_index = 0;   // of the prompt among those of its request
  bool has_logprobs = false;  // the field logprobs is given
};

// Throws InvalidArgument that names the tensor or the field. check_limits() does the rest. The fields come
// with the tensor `request`, or else as request parameters. `sender`: of kGeneration or kUnary. `tokenizer`:
// its answer, whose outputs stand for the request's inputs; those that are no inputs of the role are for
// others. Null: the request has them itself. `defaults`: of what the request leaves out. `forwarded_headers`:
// names of request parameters that mean nothing here.
GenerationRequest read_generation_request(TRITONBACKEND_Request* request, Sender sender,
                                          TRITONSERVER_InferenceResponse* tokenizer,
                                          const SamplingParams& defaults,
                                          const std::optional<std::regex>& forwarded_headers);

// The most sequences of one request: prompts x n.
constexpr size_t kMaxRequestSequences = 4096;
// Bytes of one request: as its tensors, and as the prompts and sequences that are made of it.
constexpr size_t kMaxRequestBytes = 128 << 20;

// One request for each prompt of a request. Throws InvalidArgument when the lengths do not fit,
// and, naming `field`, when there are too many.
std::vector<GenerationRequest> split_prompts(const GenerationRequest& request, const char* field);

// Throws ServerError where ids of the vocabulary `given` would mean something else to the engine of
// generation model `name`, whose vocabulary is `own`. Both: a fingerprint, a space, and the model's name. "":
// not told.
void check_vocabulary(std::string_view given, std::string_view own, const std::string& name);

// Throws InvalidArgument: sampling settings out of range, prompt empty, too long, or with ids outside the
// vocabulary.
void check_limits(const GenerationRequest& request, int32_t vocab_size, int32_t max_model_len);

}  // namespace quire::triton
