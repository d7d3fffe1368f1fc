// The one response to a request of role unary: the texts of its rows, in order, once all are there.
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
  // factory.
  Rows(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
       const GenerationRequest& generation, size_t count, std::shared_ptr<const ModelInfo> info);
  ~Rows();
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  // Nobody waits for the rows any more: the response is sent, or its client is gone.
  bool is_over() const;
  // The whole answer of a row.
  void answer(size_t row, const Chunk& chunk);
  // Answers the request with an error.
  void fail(TRITONSERVER_Error_Code code, const std::string& message);

 private:
  struct Row {
    std::string text;
    FinishReason finish_reason = FinishReason::kNone;
    uint32_t num_input_tokens = 0;
    uint32_t num_output_tokens = 0;
    std::string receipt;  // JSON
  };

  void send();
  void complete(bool is_success);

  TRITONBACKEND_ModelInstance* instance_;
  TRITONBACKEND_Request* request_;  // null once completed
  TRITONBACKEND_ResponseFactory* factory_ = nullptr;
  const std::shared_ptr<const ModelInfo> info_;
  const std::string warnings_;  // a STRING tensor's bytes
  const bool return_finish_reason_;
  const bool return_num_input_tokens_;
  const bool return_num_output_tokens_;
  const bool return_receipt_;
  std::vector<Row> rows_;
  size_t num_answered_ = 0;
  uint64_t start_ns_ = 0;
};

}  // namespace quire::triton
