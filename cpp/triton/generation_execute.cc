// What Triton's threads do with a request to generation: read and check it, and post it to the generation
// thread.
#include <atomic>
#include <utility>

#include "api.h"
#include "generation.h"

namespace quire::triton {

namespace {

std::atomic<uint64_t> next_request_id{1};

}  // namespace

void Generation::execute(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests,
                         uint32_t count) {
  const auto info = model_info();
  std::vector<std::unique_ptr<Sequence>> sequences;
  sequences.reserve(count);  // a sequence that has taken its request over must not be lost
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t start_ns = now_ns();
    try {
      GenerationRequest generation = read_generation_request(requests[i], Role::kGeneration, nullptr,
                                                             info->defaults, forwarded_headers_);
      check_vocabulary(generation.tokenized.vocabulary, info->vocabulary, name_);
      check_limits(generation, info->vocab_size, info->max_model_len);
      generation.request.request_id = next_request_id++;
      sequences.push_back(std::make_unique<Sequence>(instance, requests[i], std::move(generation), id_));
    } catch (const std::exception& error) {
      answer_with_error(instance, requests[i], error, start_ns);
    }
  }
  post(std::move(sequences));
}

void Generation::execute_unary(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                               TRITONSERVER_InferenceResponse* tokenized, uint64_t start_ns) {
  const auto info = model_info();
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::shared_ptr<Rows> answer;  // once there, it has taken the request over
  try {
    const GenerationRequest whole =
        read_generation_request(request, Role::kUnary, tokenized, info->defaults, forwarded_headers_);
    check_vocabulary(whole.tokenized.vocabulary, info->vocabulary, name_);
    std::vector<GenerationRequest> rows =
        split_rows(whole, tokenized != nullptr ? "text_input" : "row_lengths");
    for (GenerationRequest& row : rows) {
      check_limits(row, info->vocab_size, info->max_model_len);
      row.request.request_id = next_request_id++;
    }
    sequences.reserve(rows.size());
    answer = std::make_shared<Rows>(instance, request, whole, rows.size(), info, start_ns);
    for (size_t row = 0; row < rows.size(); ++row) {
      sequences.push_back(std::make_unique<Sequence>(answer, row, std::move(rows[row]), id_));
    }
  } catch (const std::exception& error) {
    if (answer) {
      answer->fail(TRITONSERVER_ERROR_INTERNAL, error.what());
    } else {
      answer_with_error(instance, request, error, start_ns);
    }
    return;
  }
  post(std::move(sequences));
}

// The rows of a request together: they share an answer, which one thread at a time may touch.
void Generation::post(std::vector<std::unique_ptr<Sequence>> sequences) {
  std::string why = "model '" + name_ + "' is being unloaded";
  try {
    if (mailbox_.post(sequences)) return;
  } catch (const std::exception& error) {  // no memory
    why = error.what();
  }
  for (auto& sequence : sequences) sequence->fail(TRITONSERVER_ERROR_UNAVAILABLE, why);
}

}  // namespace quire::triton
