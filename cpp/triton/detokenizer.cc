#include "detokenizer.h"

#include <algorithm>
#include <cstring>

#include "api.h"
#include "chunk.h"
#include "generation.h"
#include "logprobs_json.h"
#include "receipts.h"
#include "registry.h"
#include "server_guard.h"

namespace quire::triton {

namespace {

void send_final_flag(TRITONBACKEND_Request* request) {
  TRITONBACKEND_ResponseFactory* factory = nullptr;
  check(TRITONBACKEND_ResponseFactoryNew(&factory, request));
  TRITONSERVER_Error* error =
      TRITONBACKEND_ResponseFactorySendFlags(factory, TRITONSERVER_RESPONSE_COMPLETE_FINAL);
  log_if_failed(TRITONBACKEND_ResponseFactoryDelete(factory), "deleting a response factory");
  check(error);
}

// The response has left: that there is no memory for this is no error of the request.
void acknowledge(Generation& generation, Feedback& feedback) {
  try {
    generation.post(std::move(feedback));
  } catch (const std::exception& error) {
    QUIRE_LOG(ERROR, std::string("an acknowledgement is lost: ") + error.what());
  }
}

void add_logprobs(TRITONBACKEND_Request* request, ResponseBuilder& response, std::span<const Chunk> chunks,
                  const TokenTable& token_table) {
  const ChunkHeader& first = chunks.front().header;
  const size_t count = chunks.size();
  if ((first.flags & kChunkReturnCumulativeLogprob) != 0) {
    response.add_floats("cumulative_logprob", count,
                        [&](size_t i) { return static_cast<float>(chunks[i].header.cumulative_logprob); });
  }
  // Two forms of the same: each ensemble has one.
  if ((first.flags & kChunkReturnLogprobs) != 0 && is_requested(request, "logprobs")) {
    std::vector<std::string> texts;
    for (const Chunk& chunk : chunks) {
      texts.push_back(logprobs_json(chunk.logprobs, chunk.header.num_per_id, false, token_table));
    }
    response.add_strings("logprobs", count, [&](size_t i) { return std::string_view(texts[i]); });
  }
  if ((first.flags & kChunkReturnLogprobs) != 0 && is_requested(request, "output_log_probs")) {
    size_t length = 0;
    for (const Chunk& chunk : chunks) length = std::max(length, chunk.ids.size());
    const int64_t shape[] = {static_cast<int64_t>(count), static_cast<int64_t>(length)};
    const size_t row_size = length * sizeof(float);
    char* out = response.add("output_log_probs", TRITONSERVER_TYPE_FP32, shape, count * row_size);
    std::memset(out, 0, count * row_size);  // behind a shorter row
    for (size_t i = 0; i < count; ++i) write_token_logprobs(chunks[i], out + i * row_size);
  }
  if (first.num_per_prompt_place > 0) {  // of sequence 0 alone
    response.add_string("prompt_logprobs", logprobs_json(chunks.front().prompt_logprobs,
                                                         first.num_per_prompt_place, true, token_table));
  }
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
  read_chunks(bytes, chunks_, ids_, logprobs_);
  const ChunkHeader& header = chunks_.front().header;
  const auto generation = registry::find(header.owner);
  if (!generation) {
    throw ServerError(TRITONSERVER_ERROR_UNAVAILABLE, "chunk: its generation model is not loaded any more");
  }
  const bool is_nobody_waiting = is_cancelled(request);
  const auto send = [&] {
    if (is_nobody_waiting || (header.flags & kChunkProbe) != 0) {
      send_final_flag(request);
    } else {
      send_texts(request, generation->model_info()->token_table);
    }
  };
  // Where generation does not wait, it has no use for feedback, and errors are the detokenizer's own.
  if ((header.flags & kChunkAcknowledge) == 0) return send();
  const auto feedback = std::make_shared<Feedback>(Feedback{header.sequence_id, is_nobody_waiting, {}});
  const auto send_or_report = [&] {
    try {
      send();
    } catch (const std::exception& error) {
      feedback->error = error.what();
      send_final_flag(request);
    }
  };
  // Acknowledged once the HTTP thread has the response, so that what comes meanwhile merges into the next
  // chunk.
  const bool is_waiting = server_guard::run_after_delivery(
      send_or_report, [generation, feedback] { acknowledge(*generation, *feedback); });
  if (!is_waiting) return;
  Feedback note{header.sequence_id, false, {}, true};
  acknowledge(*generation, note);
}

void Detokenizer::decode(const TokenTable& token_table) {
  texts_.resize(std::max(texts_.size(), chunks_.size()));
  for (size_t i = 0; i < chunks_.size(); ++i) {
    const ChunkHeader& header = chunks_[i].header;
    texts_[i] = chunks_[i].prompt_text;
    token_table.decode_to(chunks_[i].ids.first(header.num_text_ids), (header.flags & kChunkIsFirst) != 0,
                          header.trim, (header.flags & kChunkSkipSpecialTokens) != 0, texts_[i],
                          OpenText(header.open_text));
  }
}

void Detokenizer::send_texts(TRITONBACKEND_Request* request, const TokenTable& token_table) {
  decode(token_table);
  const uint64_t text_ns = now_ns();
  const size_t count = chunks_.size();
  const Chunk& first = chunks_.front();
  const auto header = [&](size_t i) -> const ChunkHeader& { return chunks_[i].header; };
  const auto is_wanted = [&](ChunkFlags flag) { return (first.header.flags & flag) != 0; };
  ResponseBuilder response(request);
  response.add_strings("text_output", count, [&](size_t i) { return std::string_view(texts_[i]); });
  if (!first.warnings.empty()) {
    char* buffer = response.add("warnings", TRITONSERVER_TYPE_BYTES, count_strings(first.warnings),
                                first.warnings.size());
    std::memcpy(buffer, first.warnings.data(), first.warnings.size());
  }
  if (is_wanted(kChunkReturnIndex)) {
    response.add_uint32s("index", count, [&](size_t i) { return header(i).index; });
  }
  if (is_wanted(kChunkReturnFinishReason)) {
    response.add_strings("finish_reason", count, [&](size_t i) {
      return std::string_view(to_string(static_cast<FinishReason>(header(i).finish_reason)));
    });
  }
  if (is_wanted(kChunkReturnNumInputTokens)) {
    response.add_uint32("num_input_tokens", first.header.num_input_tokens);
  }
  if (is_wanted(kChunkReturnNumOutputTokens)) {
    response.add_uint32s("num_output_tokens", count, [&](size_t i) { return header(i).num_ids; });
  }
  if (is_wanted(kChunkReturnStopReason)) {
    response.add_strings("stop_reason", count, [&](size_t i) { return chunks_[i].stop_reason; });
  }
  if (is_wanted(kChunkReturnTokenIds)) {
    response.add_ids("output_ids", count, [&](size_t i) { return chunks_[i].ids; });
  }
  add_logprobs(request, response, chunks_, token_table);
  add_receipts(response, chunks_, text_ns);
  response.send(true);
}

void Detokenizer::answer_ids(TRITONBACKEND_Request* request, std::string_view bytes) {
  const auto info = registry::find(generation_model_, folder_)->model_info();
  const size_t count = bytes.size() / sizeof(int32_t);
  if (count > static_cast<size_t>(info->max_model_len)) {
    throw InvalidArgument("output_ids", std::to_string(count) + " ids",
                          "at most " + std::to_string(info->max_model_len) + " (max_model_len)");
  }
  ids_.resize(count);
  if (!ids_.empty()) std::memcpy(ids_.data(), bytes.data(), ids_.size() * sizeof(int32_t));
  const auto bad =
      std::find_if(ids_.begin(), ids_.end(), [&](int32_t id) { return id < 0 || id >= info->vocab_size; });
  if (bad != ids_.end()) {
    throw InvalidArgument("output_ids", "id " + std::to_string(*bad),
                          "ids 0 to " + std::to_string(info->vocab_size - 1));
  }
  std::string text;
  info->token_table.decode_to(ids_, true, 0, true, text);
  ResponseBuilder response(request);
  response.add_string("text_output", text);
  response.send(true);
}

}  // namespace quire::triton
