#include "rows.h"

#include <cstring>

#include "api.h"
#include "generation.h"

namespace quire::triton {

namespace {

template <class Value>
void add_strings(ResponseBuilder& response, const char* name, size_t count, Value&& value) {
  size_t size = 0;
  for (size_t i = 0; i < count; ++i) size += sizeof(uint32_t) + value(i).size();
  char* out = response.add(name, TRITONSERVER_TYPE_BYTES, static_cast<int64_t>(count), size);
  for (size_t i = 0; i < count; ++i) {
    const std::string_view text = value(i);
    const auto length = static_cast<uint32_t>(text.size());
    std::memcpy(out, &length, sizeof(length));
    out += sizeof(length);
    if (length > 0) std::memcpy(out, text.data(), length);
    out += length;
  }
}

template <class Value>
void add_counts(ResponseBuilder& response, const char* name, size_t count, Value&& value) {
  char* out =
      response.add(name, TRITONSERVER_TYPE_UINT32, static_cast<int64_t>(count), count * sizeof(uint32_t));
  for (size_t i = 0; i < count; ++i) {
    const uint32_t number = value(i);
    std::memcpy(out + i * sizeof(number), &number, sizeof(number));
  }
}

}  // namespace

Rows::Rows(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
           const GenerationRequest& generation, size_t count, std::shared_ptr<const ModelInfo> info)
    : instance_(instance),
      request_(request),
      info_(std::move(info)),
      warnings_(generation.warnings),
      return_finish_reason_(generation.return_finish_reason),
      return_num_input_tokens_(generation.return_num_input_tokens),
      return_num_output_tokens_(generation.return_num_output_tokens),
      return_receipt_(generation.request.return_receipt),
      rows_(count) {
  check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
  start_ns_ = now_ns();
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
  Row& answer = rows_.at(row);
  answer.text = chunk.prompt_text;
  info_->token_table.decode_to(chunk.ids.first(header.num_text_ids), (header.flags & kChunkIsFirst) != 0,
                               header.trim, (header.flags & kChunkSkipSpecialTokens) != 0, answer.text);
  answer.finish_reason = static_cast<FinishReason>(header.finish_reason);
  answer.num_input_tokens = header.num_input_tokens;
  answer.num_output_tokens = static_cast<uint32_t>(chunk.ids.size());
  if (!chunk.receipt.empty()) answer.receipt = finish_receipt(chunk, now_ns());
  if (++num_answered_ == rows_.size()) send();
}

void Rows::send() {
  try {
    ResponseBuilder response(factory_);
    add_strings(response, "text_output", rows_.size(),
                [&](size_t i) { return std::string_view(rows_[i].text); });
    if (!warnings_.empty()) {
      char* out =
          response.add("warnings", TRITONSERVER_TYPE_BYTES, count_strings(warnings_), warnings_.size());
      std::memcpy(out, warnings_.data(), warnings_.size());
    }
    if (return_finish_reason_) {
      add_strings(response, "finish_reason", rows_.size(),
                  [&](size_t i) { return std::string_view(to_string(rows_[i].finish_reason)); });
    }
    if (return_num_input_tokens_) {
      add_counts(response, "num_input_tokens", rows_.size(),
                 [&](size_t i) { return rows_[i].num_input_tokens; });
    }
    if (return_num_output_tokens_) {
      add_counts(response, "num_output_tokens", rows_.size(),
                 [&](size_t i) { return rows_[i].num_output_tokens; });
    }
    if (return_receipt_) {
      add_strings(response, "receipt", rows_.size(),
                  [&](size_t i) { return std::string_view(rows_[i].receipt); });
    }
    response.send(true);
  } catch (const std::exception& error) {
    fail(TRITONSERVER_ERROR_INTERNAL, std::string("a response could not be sent: ") + error.what());
    return;
  }
  complete(true);
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
