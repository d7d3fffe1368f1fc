#include "unary_response.h"

#include <utility>

#include "api.h"
#include "generation.h"

namespace quire::triton {

UnaryResponse::UnaryResponse(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                             const GenerationRequest& generation, size_t count,
                             std::shared_ptr<const ModelInfo> info, uint64_t start_ns)
    : instance_(instance),
      request_(request),
      info_(std::move(info)),
      outputs_(generation.outputs & wanted_outputs(generation)),
      n_(static_cast<size_t>(generation.request.params.n)),
      answers_(count * n_),
      start_ns_(start_ns) {
  check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
}

UnaryResponse::~UnaryResponse() {
  fail(TRITONSERVER_ERROR_INTERNAL, "the request was dropped; this is an error in Quire");
}

bool UnaryResponse::is_over() const {
  if (request_ == nullptr) return true;
  bool is_cancelled = false;
  log_if_failed(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &is_cancelled), "asking for cancellation");
  return is_cancelled;
}

void UnaryResponse::answer(size_t prompt, Chunk chunk) {
  if (request_ == nullptr) return;
  Answer& answer = answers_.at(prompt * n_ + chunk.index);
  static_cast<Chunk&>(answer) = std::move(chunk);
  finish(answer, outputs_, info_->token_table);
  if (++num_answered_ == answers_.size()) send();
}

void UnaryResponse::send() {
  try {
    ResponseBuilder response(factory_);
    write_outputs(response, Role::kUnary, outputs_, {answers_, n_});
    response.send(true);
  } catch (const std::exception& error) {
    fail(TRITONSERVER_ERROR_INTERNAL, std::string("a response could not be sent: ") + error.what());
    return;
  }
  complete(true);
}

void UnaryResponse::fail(TRITONSERVER_Error_Code code, const std::string& message) {
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

void UnaryResponse::complete(bool is_success) {
  const uint64_t end_ns = now_ns();
  log_if_failed(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request_, is_success, start_ns_,
                                                            start_ns_, end_ns, end_ns),
                "reporting statistics");
  if (is_success) {
    log_if_failed(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, answers_.size(), start_ns_,
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
