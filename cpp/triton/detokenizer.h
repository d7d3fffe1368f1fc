// Role detokenizer: ids to text, a pure function of the chunks in one tensor. Keeps nothing between requests;
// any number of instances may run.
//
// It is also generation's ear in an ensemble: it acknowledges each chunk after its response has been sent,
// and says when the server has marked its request cancelled. See generation.h.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "abi.h"
#include "chunk.h"
#include "model_settings.h"
#include "outputs.h"
#include "quire/token_table.h"

namespace quire::triton {

// One instance; Triton calls it from one thread at a time.
class Detokenizer {
 public:
  // settings: live longer.
  Detokenizer(const ModelSettings& settings, TRITONBACKEND_ModelInstance* instance)
      : settings_(settings), instance_(instance) {}

  // Takes over every request of the batch and answers it.
  void execute(TRITONBACKEND_Request** requests, uint32_t count);

 private:
  void answer(TRITONBACKEND_Request* request);
  void answer_chunk(TRITONBACKEND_Request* request, std::string_view bytes);
  // The response to answers_.
  void send_texts(TRITONBACKEND_Request* request, const TokenTable& token_table);
  void answer_ids(TRITONBACKEND_Request* request, std::string_view bytes);

  const ModelSettings& settings_;
  TRITONBACKEND_ModelInstance* const instance_;
  // Scratch, reused
  std::string joined_;
  std::vector<int32_t> ids_;
  std::vector<Answer> answers_;
};

}  // namespace quire::triton
