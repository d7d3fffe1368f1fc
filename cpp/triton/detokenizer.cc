#include "detokenizer.h"

#include <algorithm>
#include <cstring>

#include "api.h"
#include "chunk.h"
#include "generation.h"
#include "registry.h"

namespace quire::triton {

namespace {

bool is_cancelled(TRITONBACKEND_Request* request) {
  bool is_cancelled = false;
  check(TRITONBACKEND_RequestIsCancelled(request, &is_cancelled));
  return is_cancelled;
}

void send_final_flag(TRITONBACKEND_Request* request) {
  TRITONBACKEND_ResponseFactory* factory = nullptr;
  check(TRITONBACKEND_ResponseFactoryNew(&factory, request));
  TRITONSERVER_Error* error =
      TRITONBACKEND_ResponseFactorySendFlags(factory, TRITONSERVER_RESPONSE_COMPLETE_FINAL);
  log_if_failed(TRITONBACKEND_ResponseFactoryDelete(factory), "deleting a response factory");
  check(error);
}

}  // namespace

void Detokenizer::execute(TRITONBACKEND_Request** requests, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t start_ns = now_ns();
    try {
      answer(requests[i]);
    } catch (const std::exception& error) {
      answer_with_error(instance_, requests[i], error, start_ns);
      continue;
    }
    const uint64_t end_ns = now_ns();
    log_if_failed(TRITONBACKEND_ModelInstanceReportStatistics(instance_, requests[i], true, start_ns,
                                                              start_ns, end_ns, end_ns),
                  "reporting statistics");
    log_if_failed(TRITONBACKEND_RequestRelease(requests[i], TRITONSERVER_REQUEST_RELEASE_ALL),
                  "releasing a request");
  }
}

void Detokenizer::answer(TRITONBACKEND_Request* request) {
  uint32_t num_inputs = 0;
  check(TRITONBACKEND_RequestInputCount(request, &num_inputs));
  if (num_inputs != 1) {
    throw InvalidArgument("chunk, output_ids", std::to_string(num_inputs) + " of them",
                          "exactly one of them");
  }
  const InputTensor tensor = read_input(request, 0, joined_);
  const auto known = detokenizer_inputs();
  const auto spec =
      std::find_if(known.begin(), known.end(), [&](const TensorSpec& s) { return tensor.name == s.name; });
  if (spec == known.end()) throw InvalidArgument("input", std::string(tensor.name), "chunk, output_ids");
  if (tensor.type != spec->type) {
    throw InvalidArgument(spec->name, std::string("type ") + TRITONSERVER_DataTypeString(tensor.type),
                          std::string("type ") + TRITONSERVER_DataTypeString(spec->type));
  }
  if (tensor.name == "chunk") {
    answer_chunk(request, tensor.bytes);
  } else {
    answer_ids(request, tensor.bytes);
  }
}

void Detokenizer::answer_chunk(TRITONBACKEND_Request* request, std::string_view bytes) {
  const Chunk chunk = read_chunk(bytes, ids_);
  const ChunkHeader& header = chunk.header;
  const auto generation = registry::find(header.owner);
  if (!generation) {
    throw ServerError(TRITONSERVER_ERROR_UNAVAILABLE, "chunk: its generation model is not loaded any more");
  }
  Feedback feedback{header.sequence_id, is_cancelled(request), {}};
  const bool is_acknowledged = (header.flags & kChunkAcknowledge) != 0;
  try {
    if (feedback.is_cancelled || (header.flags & kChunkProbe) != 0) {
      send_final_flag(request);
    } else {
      send_text(request, chunk, generation->model_info()->token_table);
    }
  } catch (const std::exception& error) {
    // Where generation waits, the error is reported by generation, see generation.h.
    if (!is_acknowledged) throw;
    feedback.error = error.what();
    send_final_flag(request);
  }
  if (is_acknowledged) generation->post(std::move(feedback));
}

void Detokenizer::send_text(TRITONBACKEND_Request* request, const Chunk& chunk,
                            const TokenTable& token_table) {
  const ChunkHeader& header = chunk.header;
  text_.clear();
  token_table.decode_to(chunk.ids.first(header.num_text_ids), (header.flags & kChunkIsFirst) != 0,
                        header.trim, (header.flags & kChunkSkipSpecialTokens) != 0, text_,
                        OpenText(header.open_text));
  ResponseBuilder response(request);
  response.add_string("text_output", chunk.prompt_text, text_);
  if (!chunk.warnings.empty()) {
    char* buffer = response.add("warnings", TRITONSERVER_TYPE_BYTES, count_strings(chunk.warnings),
                                chunk.warnings.size());
    std::memcpy(buffer, chunk.warnings.data(), chunk.warnings.size());
  }
  if ((header.flags & kChunkReturnFinishReason) != 0) {
    response.add_string("finish_reason", to_string(static_cast<FinishReason>(header.finish_reason)));
  }
  if ((header.flags & kChunkReturnNumInputTokens) != 0) {
    response.add_uint32("num_input_tokens", header.num_input_tokens);
  }
  if ((header.flags & kChunkReturnNumOutputTokens) != 0)
    response.add_uint32("num_output_tokens", header.num_ids);
  if (!chunk.receipt.empty()) response.add_string("receipt", finish_receipt(chunk, now_ns()));
  response.send(true);
}

void Detokenizer::answer_ids(TRITONBACKEND_Request* request, std::string_view bytes) {
  const auto info = registry::find(generation_model_)->model_info();
  ids_.resize(bytes.size() / sizeof(int32_t));
  if (!ids_.empty()) std::memcpy(ids_.data(), bytes.data(), ids_.size() * sizeof(int32_t));
  const auto bad =
      std::find_if(ids_.begin(), ids_.end(), [&](int32_t id) { return id < 0 || id >= info->vocab_size; });
  if (bad != ids_.end()) {
    throw InvalidArgument("output_ids", "id " + std::to_string(*bad),
                          "ids 0 to " + std::to_string(info->vocab_size - 1));
  }
  text_.clear();
  info->token_table.decode_to(ids_, true, 0, true, text_);
  ResponseBuilder response(request);
  response.add_string("text_output", text_);
  response.send(true);
}

}  // namespace quire::triton
