// The one response to a request of role unary: the texts of its prompts, in order, once all are there.
//
// With n > 1 each prompt has n answers, side by side: answer i of prompt r is element r * n + i of every
// output but num_input_tokens and prompt_logprobs, which have one for each prompt.
//
// Each prompt is a ClientRequest of its own, so prompts are scheduled like any other requests. The response
// is sent by the last prompt, or by the first error. One thread at a time, as for ClientRequest.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "chunk.h"
#include "generation_request.h"
#include "open_request.h"
#include "outputs.h"
#include "quire/token_table.h"

namespace quire::triton {

struct ModelInfo;

class UnaryResponse {
 public:
  // Takes over the server's request, or throws, as OpenRequest. start_ns: when the model got the request.
  UnaryResponse(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                const GenerationRequest& generation, Dialect dialect, size_t count,
                std::shared_ptr<const ModelInfo> info, uint64_t start_ns,
                std::shared_ptr<ModelMetrics> metrics);

  // No one waits for the prompts any more: the response is sent, or its client is gone.
  bool is_over() const { return open_.is_over(); }
  size_t num_prompts() const { return answers_.size() / n_; }
  // The whole answer of a prompt, or one of its n.
  void answer(size_t prompt, Chunk chunk);
  // Answers the request with an error.
  void fail(Failure failure, const std::string& message) { open_.fail(failure, message); }

 private:
  const std::shared_ptr<const ModelInfo> info_;
  const std::shared_ptr<ModelMetrics> metrics_;
  const Sender sender_;
  const uint32_t outputs_;  // wanted by the request's fields, and asked for by name
  const size_t n_;
  std::vector<Answer> answers_;  // [prompts * n]
  size_t num_answered_ = 0;
  OpenRequest open_;  // last: nothing can throw once it has taken the request over
};

}  // namespace quire::triton
