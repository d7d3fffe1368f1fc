#include "detokenizer.h"

#include <algorithm>
#include <cstring>

#include "api.h"
#include "chunk.h"
#include "generation.h"
#include "outputs.h"
#include "registry.h"
#include "server_guard.h"

namespace quire::triton {

namespace {

void send_final_flag(TRITONBACKEND_Request* request) {
  const auto factory = make_owned<OwnedResponseFactory>(
      [&](auto** made) { return TRITONBACKEND_ResponseFactoryNew(made, request); });
  check(TRITONBACKEND_ResponseFactorySendFlags(factory.get(), TRITONSERVER_RESPONSE_COMPLETE_FINAL));
}

// The response has left: that there is no memory for this is no error of the request.
void acknowledge(Generation& generation, const Feedback& feedback) {
  try {
    generation.post(feedback);
  } catch (const std::exception& error) {
    QUIRE_LOG(ERROR, std::string("an acknowledgement is lost: ") + error.what());
  }
}

}  // namespace

void Detokenizer::execute(TRITONBACKEND_Request** requests, uint32_t count) {
  answer_each(instance_, requests, count,
              [this](TRITONBACKEND_Request* request, uint64_t) { answer(request); });
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
  read_chunks(bytes, answers_);
  const Chunk& chunk = answers_.front();
  const auto generation = registry::find(chunk.owner);
  if (!generation) {
    throw ServerError(TRITONSERVER_ERROR_UNAVAILABLE, "chunk: its generation model is not loaded any more");
  }
  const bool is_nobody_waiting = is_cancelled(request);
  const auto send = [&] {
    if (is_nobody_waiting || chunk.is_probe) return send_final_flag(request);
    const auto begin_ns = static_cast<int64_t>(now_ns());
    generation->metrics().observe_ns(ServerSeries::kStageToDetokenizer, begin_ns - chunk.sent_ns);
    send_texts(request, generation->model_info()->token_table);
    generation->metrics().observe_ns(ServerSeries::kStageDetokenize,
                                     static_cast<int64_t>(now_ns()) - begin_ns);
  };
  // Where generation does not wait, it has no use for feedback, and errors are the detokenizer's own.
  if (!chunk.acknowledge) return send();
  const auto feedback = std::make_shared<Feedback>(Feedback{chunk.request_id, is_nobody_waiting, {}});
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
  if (is_waiting) acknowledge(*generation, {chunk.request_id, false, {}, true});
}

void Detokenizer::send_texts(TRITONBACKEND_Request* request, const TokenTable& token_table) {
  const uint32_t outputs = requested_outputs(request, settings_.sender(), answers_.front().outputs);
  for (Answer& answer : answers_) finish(answer, outputs, token_table);
  ResponseBuilder response(request);
  write_outputs(response, settings_.sender(), outputs, {answers_, answers_.size()});
  response.send(true);
}

void Detokenizer::answer_ids(TRITONBACKEND_Request* request, std::string_view bytes) {
  const auto info = registry::find(settings_.generation_model, settings_.folder)->model_info();
  const int32_t vocab_size = info->ready.vocab_size, max_model_len = info->ready.max_model_len;
  const size_t count = bytes.size() / sizeof(int32_t);
  if (count > static_cast<size_t>(max_model_len)) {
    throw InvalidArgument("output_ids", std::to_string(count) + " ids",
                          "at most " + std::to_string(max_model_len) + " (max_model_len)");
  }
  ids_.resize(count);
  if (!ids_.empty()) std::memcpy(ids_.data(), bytes.data(), ids_.size() * sizeof(int32_t));
  const auto bad =
      std::find_if(ids_.begin(), ids_.end(), [&](int32_t id) { return id < 0 || id >= vocab_size; });
  if (bad != ids_.end()) {
    throw InvalidArgument("output_ids", "id " + std::to_string(*bad),
                          "ids 0 to " + std::to_string(vocab_size - 1));
  }
  std::string text;
  info->token_table.decode_to(ids_, true, 0, true, text);
  ResponseBuilder response(request);
  response.add_string("text_output", text);
  response.send(true);
}

}  // namespace quire::triton
