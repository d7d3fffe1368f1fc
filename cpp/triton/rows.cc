#include "rows.h"

#include <algorithm>
#include <cstring>

#include "api.h"
#include "generation.h"
#include "logprobs_json.h"
#include "receipts.h"

namespace quire::triton {

Rows::Rows(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
           const GenerationRequest& generation, size_t count, std::shared_ptr<const ModelInfo> info,
           uint64_t start_ns)
    : instance_(instance),
      request_(request),
      info_(std::move(info)),
      warnings_(generation.warnings),
      return_text_(is_requested(request, "text_output")),
      return_warnings_(!warnings_.empty() && is_requested(request, "warnings")),
      return_finish_reason_(generation.return_finish_reason && is_requested(request, "finish_reason")),
      return_num_input_tokens_(generation.return_num_input_tokens &&
                               is_requested(request, "num_input_tokens")),
      return_num_output_tokens_(generation.return_num_output_tokens &&
                                is_requested(request, "num_output_tokens")),
      return_receipt_(generation.request.return_receipt && is_requested(request, "receipt")),
      return_stop_reason_(generation.return_stop_reason && is_requested(request, "stop_reason")),
      return_token_ids_(generation.return_token_ids && is_requested(request, "output_ids")),
      return_cumulative_logprob_(generation.return_cumulative_logprob &&
                                 is_requested(request, "cumulative_logprob")),
      return_cum_log_probs_(generation.return_cumulative_logprob && is_requested(request, "cum_log_probs")),
      return_prompt_logprobs_(generation.request.params.prompt_logprobs.has_value() &&
                              is_requested(request, "prompt_logprobs")),
      return_logprobs_(generation.return_logprobs && is_requested(request, "logprobs")),
      return_output_log_probs_(generation.return_logprobs && is_requested(request, "output_log_probs")),
      n_(static_cast<size_t>(generation.request.params.n)),
      rows_(count * n_),
      start_ns_(start_ns) {
  check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
}

Rows::~Rows() { fail(TRITONSERVER_ERROR_INTERNAL, "the request was dropped; this is an error in Quire"); }

bool Rows::is_over() const {
  if (request_ == nullptr) return true;
  bool is_cancelled = false;
  log_if_failed(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &is_cancelled), "asking for cancellation");
  return is_cancelled;
}

void Rows::answer(size_t row, const Chunk& chunk) {
  if (request_ == nullptr) return;
  const ChunkHeader& header = chunk.header;
  Row& answer = rows_.at(row * n_ + header.index);
  answer.text = chunk.prompt_text;
  info_->token_table.decode_to(chunk.ids.first(header.num_text_ids), (header.flags & kChunkIsFirst) != 0,
                               header.trim, (header.flags & kChunkSkipSpecialTokens) != 0, answer.text,
                               OpenText(header.open_text));
  answer.finish_reason = static_cast<FinishReason>(header.finish_reason);
  answer.num_input_tokens = header.num_input_tokens;
  answer.num_output_tokens = static_cast<uint32_t>(chunk.ids.size());
  if (return_token_ids_) answer.ids.assign(chunk.ids.begin(), chunk.ids.end());
  answer.stop_reason = chunk.stop_reason;
  answer.cumulative_logprob = static_cast<float>(header.cumulative_logprob);
  if (return_prompt_logprobs_ && header.index == 0) {
    answer.prompt_logprobs =
        logprobs_json(chunk.prompt_logprobs, header.num_per_prompt_place, true, info_->token_table);
  }
  if (return_logprobs_) {
    answer.logprobs = logprobs_json(chunk.logprobs, header.num_per_id, false, info_->token_table);
  }
  if (return_output_log_probs_) {
    answer.token_logprobs.resize(chunk.ids.size());
    write_token_logprobs(chunk, reinterpret_cast<char*>(answer.token_logprobs.data()));
  }
  answer.receipt = finish_receipt(chunk, now_ns());
  if (++num_answered_ == rows_.size()) send();
}

void Rows::send() {
  try {
    ResponseBuilder response(factory_);
    if (return_text_) {
      response.add_strings("text_output", rows_.size(),
                           [&](size_t i) { return std::string_view(rows_[i].text); });
    }
    if (return_warnings_) {
      char* out =
          response.add("warnings", TRITONSERVER_TYPE_BYTES, count_strings(warnings_), warnings_.size());
      std::memcpy(out, warnings_.data(), warnings_.size());
    }
    if (return_finish_reason_) {
      response.add_strings("finish_reason", rows_.size(),
                           [&](size_t i) { return std::string_view(to_string(rows_[i].finish_reason)); });
    }
    if (return_num_input_tokens_) {
      response.add_uint32s("num_input_tokens", rows_.size() / n_,
                           [&](size_t i) { return rows_[i * n_].num_input_tokens; });
    }
    if (return_num_output_tokens_) {
      response.add_uint32s("num_output_tokens", rows_.size(),
                           [&](size_t i) { return rows_[i].num_output_tokens; });
    }
    if (return_receipt_) {
      response.add_strings("receipt", rows_.size(),
                           [&](size_t i) { return std::string_view(rows_[i].receipt); });
    }
    if (return_stop_reason_) {
      response.add_strings("stop_reason", rows_.size(),
                           [&](size_t i) { return std::string_view(rows_[i].stop_reason); });
    }
    if (return_token_ids_) {
      response.add_ids("output_ids", rows_.size(),
                       [&](size_t i) { return std::span<const int32_t>(rows_[i].ids); });
    }
    add_logprobs(response);
    response.send(true);
  } catch (const std::exception& error) {
    fail(TRITONSERVER_ERROR_INTERNAL, std::string("a response could not be sent: ") + error.what());
    return;
  }
  complete(true);
}

void Rows::add_logprobs(ResponseBuilder& response) const {
  const auto cumulative = [&](size_t i) { return rows_[i].cumulative_logprob; };
  if (return_cumulative_logprob_) response.add_floats("cumulative_logprob", rows_.size(), cumulative);
  if (return_cum_log_probs_) response.add_floats("cum_log_probs", rows_.size(), cumulative);
  if (return_logprobs_) {
    response.add_strings("logprobs", rows_.size(),
                         [&](size_t i) { return std::string_view(rows_[i].logprobs); });
  }
  if (return_prompt_logprobs_) {
    response.add_strings("prompt_logprobs", rows_.size() / n_,
                         [&](size_t i) { return std::string_view(rows_[i * n_].prompt_logprobs); });
  }
  if (!return_output_log_probs_) return;
  size_t length = 0;
  for (const Row& row : rows_) length = std::max(length, row.token_logprobs.size());
  const int64_t shape[] = {static_cast<int64_t>(rows_.size()), static_cast<int64_t>(length)};
  const size_t row_size = length * sizeof(float);
  char* out = response.add("output_log_probs", TRITONSERVER_TYPE_FP32, shape, rows_.size() * row_size);
  for (const Row& row : rows_) {
    std::memset(out, 0, row_size);  // behind a shorter row
    std::memcpy(out, row.token_logprobs.data(), row.token_logprobs.size() * sizeof(float));
    out += row_size;
  }
}

void Rows::fail(TRITONSERVER_Error_Code code, const std::string& message) {
  if (request_ == nullptr) return;
  TRITONSERVER_Error* error = TRITONSERVER_ErrorNew(code, message.c_str());
  try {
    ResponseBuilder(factory_).send(true, error);
  } catch (const std::exception& failure) {
    QUIRE_LOG(ERROR, std::string("a request could not be answered: ") + failure.what());
  }
  TRITONSERVER_ErrorDelete(error);
  complete(false);
}

void Rows::complete(bool is_success) {
  const uint64_t end_ns = now_ns();
  log_if_failed(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request_, is_success, start_ns_,
                                                            start_ns_, end_ns, end_ns),
                "reporting statistics");
  if (is_success) {
    log_if_failed(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, rows_.size(), start_ns_,
                                                                   start_ns_, end_ns, end_ns),
                  "reporting statistics");
  }
  log_if_failed(TRITONBACKEND_ResponseFactoryDelete(factory_), "deleting a response factory");
  log_if_failed(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL),
                "releasing a request");
  factory_ = nullptr;
  request_ = nullptr;
}

}  // namespace quire::triton
