#include "sequence.h"

#include <array>
#include <cstring>

#include "api.h"

namespace quire::triton {

namespace {

// Those of three tensors that were asked for, one bit each. shape: [num_places, num_per_place].
void add_logprobs(ResponseBuilder& response, const std::array<const char*, 3>& names, uint32_t outputs,
                  std::span<const Logprob> logprobs, const std::array<int64_t, 2>& shape) {
  const auto add = [&]<class T>(size_t i, TRITONSERVER_DataType type, T Logprob::* member) {
    if ((outputs & (1U << i)) == 0) return;
    char* out = response.add(names[i], type, shape, logprobs.size() * sizeof(T));
    for (const Logprob& logprob : logprobs) {
      std::memcpy(out, &(logprob.*member), sizeof(T));
      out += sizeof(T);
    }
  };
  add(0, TRITONSERVER_TYPE_INT32, &Logprob::token_id);
  add(1, TRITONSERVER_TYPE_FP32, &Logprob::logprob);
  add(2, TRITONSERVER_TYPE_INT32, &Logprob::rank);
}

}  // namespace

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

void Sequence::take(const Release& release, const StepOutputs& outputs) {
  QUIRE_CHECK(!is_finished(), "request " << id() << " was finished before");
  const bool is_last = release.finish_reason != FinishReason::kNone;
  // Only the end of the text may be cut: runs are merged by joining them.
  const uint32_t num_text_ids = generation_.request.params.detokenize ? release.num_ids : 0;
  QUIRE_CHECK(is_last || (release.trim == 0 && release.num_text_ids == num_text_ids),
              "request " << id() << ", trim " << release.trim << ", " << release.num_text_ids << " of "
                         << release.num_ids << " ids with text");
  if (first_output_ns_ == 0) first_output_ns_ = now_ns();
  if (num_sent_ == output_ids_.size()) {
    is_first_ = release.is_first;
    open_text_ = release.open_text;
  }
  const auto ids = std::span(outputs.token_ids).subspan(release.ids_begin, release.num_ids);
  output_ids_.insert(output_ids_.end(), ids.begin(), ids.end());
  num_textless_ids_ = release.num_ids - release.num_text_ids;
  trim_ = release.trim;
  finish_reason_ = release.finish_reason;
  if (release.logprobs_idx >= 0) {
    take_logprobs(outputs.logprobs[static_cast<size_t>(release.logprobs_idx)], outputs);
  }
  if (release.stop_string_idx >= 0) {
    stop_reason_ = outputs.stop_string(release);
  } else if (release.stop_token_id >= 0) {
    stop_reason_ = std::to_string(release.stop_token_id);
  }
}

void Sequence::take_logprobs(const ReleaseLogprobs& run, const StepOutputs& outputs) {
  const auto of_ids = outputs.of_ids(run);
  logprobs_.num_per_id = run.num_per_id;
  logprobs_.of_ids.insert(logprobs_.of_ids.end(), of_ids.begin(), of_ids.end());
  logprobs_.cumulative = run.cumulative_logprob;
  if (run.num_per_prompt_place == 0) return;
  const auto of_prompt = outputs.of_prompt(run);
  logprobs_.num_prompt_places = run.num_prompt_places;
  logprobs_.num_per_prompt_place = run.num_per_prompt_place;
  logprobs_.of_prompt.assign(of_prompt.begin(), of_prompt.end());
}

void Sequence::drop_sent() {
  num_sent_ = output_ids_.size();
  is_anything_sent_ = true;
  logprobs_.of_ids.clear();
  logprobs_.of_prompt.clear();
  logprobs_.num_prompt_places = logprobs_.num_per_prompt_place = 0;
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
                        flag(generation_.return_num_output_tokens, kChunkReturnNumOutputTokens) |
                        flag(generation_.return_logprobs, kChunkReturnLogprobs) |
                        flag(generation_.return_cumulative_logprob, kChunkReturnCumulativeLogprob) |
                        flag(generation_.return_stop_reason, kChunkReturnStopReason) |
                        flag(generation_.return_token_ids, kChunkReturnTokenIds);
  chunk.ids = std::span(output_ids_).subspan(num_sent_);
  const bool has_text = generation_.request.params.detokenize;
  chunk.header.num_text_ids = has_text ? static_cast<uint32_t>(chunk.ids.size()) - num_textless_ids_ : 0;
  chunk.logprobs = logprobs_.of_ids;
  chunk.prompt_logprobs = logprobs_.of_prompt;
  chunk.header.num_per_id = logprobs_.num_per_id;
  chunk.header.num_prompt_places = logprobs_.num_prompt_places;
  chunk.header.num_per_prompt_place = logprobs_.num_per_prompt_place;
  chunk.header.cumulative_logprob = logprobs_.cumulative;
  chunk.stop_reason = stop_reason_;
  chunk.header.trim = trim_;
  chunk.header.open_text = open_text_.bits();
  chunk.header.finish_reason = static_cast<uint32_t>(finish_reason_);
  chunk.header.num_input_tokens = static_cast<uint32_t>(generation_.request.prompt_ids.size());
  if (!is_anything_sent_) {
    chunk.prompt_text = generation_.prompt_text;
    chunk.warnings = generation_.warnings;
  }
  return chunk;
}

void Sequence::write_outputs(ResponseBuilder& response, const Chunk& chunk) const {
  const uint32_t outputs = generation_.outputs;
  if ((outputs & kOutputChunk) != 0) {
    const size_t size = chunk_size(chunk);
    write_chunk(chunk, response.add("chunk", TRITONSERVER_TYPE_UINT8, static_cast<int64_t>(size), size));
  }
  if ((chunk.header.flags & kChunkProbe) != 0) return;
  if ((outputs & kOutputIds) != 0) response.add_ids("output_ids", chunk.ids);
  if ((outputs & kOutputFinishReason) != 0) response.add_string("finish_reason", to_string(finish_reason_));
  if ((outputs & kOutputNumInputTokens) != 0)
    response.add_uint32("num_input_tokens", chunk.header.num_input_tokens);
  if ((outputs & kOutputNumOutputTokens) != 0) {
    response.add_uint32("num_output_tokens", static_cast<uint32_t>(chunk.ids.size()));
  }
  if ((outputs & kOutputStopReason) != 0) response.add_string("stop_reason", chunk.stop_reason);
  const ChunkHeader& header = chunk.header;
  if ((outputs & kOutputCumulativeLogprob) != 0 && header.num_per_id > 0) {
    response.add_float("cumulative_logprob", static_cast<float>(header.cumulative_logprob));
  }
  if (header.num_per_id > 0) {
    add_logprobs(response, {"logprob_ids", "logprobs", "logprob_ranks"}, outputs / kOutputLogprobs,
                 chunk.logprobs, {static_cast<int64_t>(chunk.ids.size()), header.num_per_id});
  }
  if (header.num_per_prompt_place > 0) {
    add_logprobs(response, {"prompt_logprob_ids", "prompt_logprobs", "prompt_logprob_ranks"},
                 outputs / kOutputPromptLogprobs, chunk.prompt_logprobs,
                 {header.num_prompt_places, header.num_per_prompt_place});
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
    drop_sent();
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
