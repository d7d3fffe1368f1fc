// The one response to a request of role unary: the texts of its rows, in order, once all are there.
//
// With n > 1 each row has n answers, side by side: answer i of row r is element r * n + i of every output but
// num_input_tokens and prompt_logprobs, which have one for each row.
//
// Each row is a Sequence of its own, so rows are scheduled like any other requests. The response is sent
// exactly once: by the last row, by the first error, or by the destructor. One thread at a time, as for
// Sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "chunk.h"
#include "generation_request.h"
#include "quire/token_table.h"

namespace quire::triton {

struct ModelInfo;

class Rows {
 public:
  // Takes over the server's request. Throws, without taking it over, when the server cannot make a response
  // factory. start_ns: when the model got the request.
  Rows(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
       const GenerationRequest& generation, size_t count, std::shared_ptr<const ModelInfo> info,
       uint64_t start_ns);
  ~Rows();
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  // Nobody waits for the rows any more: the response is sent, or its client is gone.
  bool is_over() const;
  size_t num_rows() const { return rows_.size() / n_; }
  // The whole answer of a row, or one of its n.
  void answer(size_t row, const Chunk& chunk);
  // Answers the request with an error.
  void fail(TRITONSERVER_Error_Code code, const std::string& message);

 private:
  struct Row {
    std::string text;
    FinishReason finish_reason = FinishReason::kNone;
    uint32_t num_input_tokens = 0;
    uint32_t num_output_tokens = 0;
    std::string receipt;       // JSON
    std::vector<int32_t> ids;  // this and what follows where it is asked for
    std::string stop_reason;
    std::string logprobs;  // JSON
    std::string prompt_logprobs;
    std::vector<float> token_logprobs;
    float cumulative_logprob = 0;
  };

  void send();
  void add_logprobs(class ResponseBuilder& response) const;
  void complete(bool is_success);

  TRITONBACKEND_ModelInstance* instance_;
  TRITONBACKEND_Request* request_;  // null once completed
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
  const std::shared_ptr<const ModelInfo> info_;
  const std::string warnings_;  // a STRING tensor's bytes
  // Outputs that the request wants: it says so in its inputs, and does not ask for other outputs only.
  const bool return_text_;
  const bool return_warnings_;
  const bool return_finish_reason_;
  const bool return_num_input_tokens_;
  const bool return_num_output_tokens_;
  const bool return_receipt_;
  const bool return_stop_reason_;
  const bool return_token_ids_;
  const bool return_cumulative_logprob_;
  const bool return_cum_log_probs_;  // the same under the name that TensorRT-LLM's clients know
  const bool return_prompt_logprobs_;
  const bool return_logprobs_;          // as JSON
  const bool return_output_log_probs_;  // the same as numbers, of the sampled tokens alone
  const size_t n_;
  std::vector<Row> rows_;  // [rows * n]
  size_t num_answered_ = 0;
  const uint64_t start_ns_;
};

}  // namespace quire::triton
