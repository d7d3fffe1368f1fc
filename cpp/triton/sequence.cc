#include "sequence.h"

#include <cstring>

#include "api.h"

namespace quire::triton {

Sequence::Sequence(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                   GenerationRequest generation, uint64_t owner)
    : instance_(instance), request_(request), generation_(std::move(generation)), owner_(owner) {
  check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
  start_ns_ = now_ns();
  last_sent_ = Clock::now();
}

Sequence::Sequence(std::shared_ptr<Rows> rows, size_t row, GenerationRequest generation, uint64_t owner)
    : instance_(nullptr),
      request_(nullptr),
      rows_(std::move(rows)),
      row_(row),
      generation_(std::move(generation)),
      owner_(owner) {
  start_ns_ = now_ns();
  last_sent_ = Clock::now();
}

Sequence::~Sequence() {
  if (is_open()) fail(TRITONSERVER_ERROR_INTERNAL, "the request was dropped; this is an error in Quire");
}

bool Sequence::is_cancelled() const {
  if (rows_) return rows_->is_over();
  bool is_cancelled = false;
  log_if_failed(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &is_cancelled), "asking for cancellation");
  return is_cancelled;
}

void Sequence::take(const Release& release, std::span<const int32_t> ids) {
  QUIRE_CHECK(!is_finished(), "request " << id() << " was finished before");
  const bool is_last = release.finish_reason != FinishReason::kNone;
  // Only the end of the text may be cut: runs are merged by joining them.
  QUIRE_CHECK(is_last || (release.trim == 0 && release.num_text_ids == release.num_ids),
              "request " << id() << ", trim " << release.trim << ", " << release.num_text_ids << " of "
                         << release.num_ids << " ids with text");
  if (first_output_ns_ == 0) first_output_ns_ = now_ns();
  if (num_sent_ == output_ids_.size()) {
    is_first_ = release.is_first;
    open_text_ = release.open_text;
  }
  output_ids_.insert(output_ids_.end(), ids.begin(), ids.end());
  num_textless_ids_ = release.num_ids - release.num_text_ids;
  trim_ = release.trim;
  finish_reason_ = release.finish_reason;
}

Chunk Sequence::make_chunk(uint32_t flags) const {
  const auto flag = [](bool is_set, ChunkFlags bit) { return is_set ? bit : 0U; };
  Chunk chunk;
  chunk.header.flags = flags | flag(generation_.request.params.skip_special_tokens, kChunkSkipSpecialTokens) |
                       flag(generation_.acknowledge && !is_finished(), kChunkAcknowledge);
  chunk.header.owner = owner_;
  chunk.header.sequence_id = id();
  if ((flags & kChunkProbe) != 0) return chunk;

  chunk.header.flags |= flag(is_first_, kChunkIsFirst) |
                        flag(generation_.return_finish_reason, kChunkReturnFinishReason) |
                        flag(generation_.return_num_input_tokens, kChunkReturnNumInputTokens) |
                        flag(generation_.return_num_output_tokens, kChunkReturnNumOutputTokens);
  chunk.ids = std::span(output_ids_).subspan(num_sent_);
  chunk.header.num_text_ids = static_cast<uint32_t>(chunk.ids.size()) - num_textless_ids_;
  chunk.header.trim = trim_;
  chunk.header.open_text = open_text_.bits();
  chunk.header.finish_reason = static_cast<uint32_t>(finish_reason_);
  chunk.header.num_input_tokens = static_cast<uint32_t>(generation_.request.prompt_ids.size());
  if (receipt_) chunk.receipt = {reinterpret_cast<const char*>(&*receipt_), sizeof(Receipt)};
  if (!is_anything_sent_) {
    chunk.prompt_text = generation_.prompt_text;
    chunk.warnings = generation_.warnings;
  }
  return chunk;
}

void Sequence::write_outputs(ResponseBuilder& response, const Chunk& chunk) const {
  const uint8_t outputs = generation_.outputs;
  if ((outputs & kOutputChunk) != 0) {
    const size_t size = chunk_size(chunk);
    write_chunk(chunk, response.add("chunk", TRITONSERVER_TYPE_UINT8, static_cast<int64_t>(size), size));
  }
  if ((chunk.header.flags & kChunkProbe) != 0) return;
  if ((outputs & kOutputIds) != 0) {
    const size_t size = chunk.ids.size_bytes();
    char* buffer =
        response.add("output_ids", TRITONSERVER_TYPE_INT32, static_cast<int64_t>(chunk.ids.size()), size);
    if (size > 0) std::memcpy(buffer, chunk.ids.data(), size);
  }
  if ((outputs & kOutputFinishReason) != 0) response.add_string("finish_reason", to_string(finish_reason_));
  if ((outputs & kOutputReceipt) != 0 && receipt_) {
    response.add_string("receipt", to_json(*receipt_, static_cast<int64_t>(now_ns())));
  }
  if ((outputs & kOutputNumInputTokens) != 0)
    response.add_uint32("num_input_tokens", chunk.header.num_input_tokens);
  if ((outputs & kOutputNumOutputTokens) != 0) {
    response.add_uint32("num_output_tokens", static_cast<uint32_t>(chunk.ids.size()));
  }
}

void Sequence::send() {
  const bool is_last = is_finished();
  // What is sent counts as sent before it is on its way: the acknowledgement may come from another thread at
  // once.
  is_outstanding_ = generation_.acknowledge && !is_last;
  last_sent_ = Clock::now();
  if (rows_) {
    try {
      rows_->answer(row_, make_chunk(0));
    } catch (const std::exception& error) {
      rows_->fail(TRITONSERVER_ERROR_INTERNAL, error.what());
    }
    rows_.reset();
    return;
  }
  try {
    ResponseBuilder response(factory_);
    write_outputs(response, make_chunk(0));
    num_sent_ = output_ids_.size();
    is_anything_sent_ = true;
    response.send(is_last);
  } catch (const std::exception& error) {
    fail(TRITONSERVER_ERROR_INTERNAL, std::string("a response could not be sent: ") + error.what());
    return;
  }
  if (is_last) complete(true);
}

bool Sequence::is_probe_due(Clock::time_point now, Clock::duration silence) const {
  return generation_.acknowledge && is_open() && !is_outstanding_ && !is_finished() &&
         now - last_sent_ >= silence;
}

void Sequence::send_probe() {
  is_outstanding_ = true;
  last_sent_ = Clock::now();
  try {
    ResponseBuilder response(factory_);
    write_outputs(response, make_chunk(kChunkProbe));
    response.send(false);
  } catch (const std::exception& error) {
    fail(TRITONSERVER_ERROR_INTERNAL, std::string("a probe could not be sent: ") + error.what());
  }
}

bool Sequence::is_abandoned(Clock::time_point now, Clock::duration patience) const {
  return is_outstanding_ && now - last_sent_ >= patience;
}

void Sequence::acknowledge() {
  is_outstanding_ = false;
  if (finish_reason_ == FinishReason::kError) fail(error_code_, error_);
}

void Sequence::end_with_error(TRITONSERVER_Error_Code code, const std::string& message) {
  if (!is_outstanding_) {
    fail(code, message);
  } else if (finish_reason_ != FinishReason::kError) {
    finish_reason_ = FinishReason::kError;
    error_code_ = code;
    error_ = message;
  }
}

void Sequence::fail(TRITONSERVER_Error_Code code, const std::string& message) {
  if (!is_open()) return;
  if (rows_) {
    rows_->fail(code, message);
    rows_.reset();
    return;
  }
  TRITONSERVER_Error* error = TRITONSERVER_ErrorNew(code, message.c_str());
  try {
    ResponseBuilder(factory_).send(true, error);
  } catch (const std::exception& failure) {
    QUIRE_LOG(ERROR, "request " + std::to_string(id()) + " could not be answered: " + failure.what());
  }
  TRITONSERVER_ErrorDelete(error);
  complete(false);
}

void Sequence::complete(bool is_success) {
  const uint64_t end_ns = now_ns();
  const uint64_t first_ns = first_output_ns_ != 0 ? first_output_ns_ : end_ns;
  log_if_failed(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request_, is_success, start_ns_,
                                                            start_ns_, first_ns, end_ns),
                "reporting statistics");
  if (is_success) {
    log_if_failed(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, 1, start_ns_, start_ns_,
                                                                   first_ns, end_ns),
                  "reporting statistics");
  }
  log_if_failed(TRITONBACKEND_ResponseFactoryDelete(factory_), "deleting a response factory");
  log_if_failed(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL),
                "releasing a request");
  factory_ = nullptr;
  request_ = nullptr;
}

}  // namespace quire::triton
