#include "open_request.h"

namespace quire::triton {

OpenRequest::OpenRequest(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                         uint64_t start_ns, std::shared_ptr<ModelMetrics> metrics, size_t num_answers,
                         size_t num_prompts)
    : instance_(instance),
      request_(request),
      factory_(make_owned<OwnedResponseFactory>(
          [&](auto** factory) { return TRITONBACKEND_ResponseFactoryNew(factory, request); })),
      metrics_(std::move(metrics)),
      num_answers_(num_answers),
      num_prompts_(num_prompts),
      num_ends_left_(num_prompts),
      start_ns_(start_ns) {}

OpenRequest::~OpenRequest() {
  fail(Failure::kInternal, "the request was dropped; this is an error in Quire");
}

bool OpenRequest::is_over() const {
  if (!is_open()) return true;
  bool is_cancelled = false;
  log_if_failed(TRITONBACKEND_ResponseFactoryIsCancelled(factory_.get(), &is_cancelled),
                "asking for cancellation");
  return is_cancelled;
}

void OpenRequest::mark_output() {
  if (first_output_ns_ == 0) first_output_ns_ = now_ns();
}

void OpenRequest::send(bool is_last, const char* what, const std::function<void(ResponseBuilder&)>& fill) {
  if (!is_open()) return;
  const bool is_final = is_last && --num_ends_left_ == 0;
  try {
    const uint64_t begin_ns = now_ns();
    ResponseBuilder response(factory_.get());
    fill(response);
    response.send(is_final);
    metrics_->observe_ns(ServerSeries::kStageSend, static_cast<int64_t>(now_ns() - begin_ns));
  } catch (const std::exception& error) {
    fail(Failure::kInternal, std::string(what) + " could not be sent: " + error.what());
    return;
  }
  if (is_final) complete(true);
}

void OpenRequest::fail(Failure failure, const std::string& message) {
  if (request_ == nullptr) return;
  metrics_->count(failure);
  try {
    ResponseBuilder(factory_.get()).send_error(ServerError(code_of(failure), message));
  } catch (const std::exception& failure) {
    QUIRE_LOG(ERROR, std::string("a request could not be answered: ") + failure.what());
  }
  complete(false);
}

void OpenRequest::complete(bool is_success) {
  const uint64_t end_ns = now_ns();
  const uint64_t first_ns = first_output_ns_ != 0 ? first_output_ns_ : end_ns;
  if (is_success) {
    log_if_failed(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance_, num_answers_, start_ns_,
                                                                   start_ns_, first_ns, end_ns),
                  "reporting statistics");
  }
  factory_.reset();
  release(instance_, request_, is_success, start_ns_, first_ns, end_ns);
  request_ = nullptr;
}

}  // namespace quire::triton
