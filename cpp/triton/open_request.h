// A request of the server while it is being answered.
//
// Invariant: it is completed (FINAL, statistics, release) exactly once: by the last response of each of its
// prompts, by fail(), or by the destructor. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "api.h"
#include "failure.h"
#include "metrics.h"

namespace quire::triton {

class OpenRequest {
 public:
  // Takes over the server's request. Throws, without taking it over, when the server cannot make a response
  // factory. num_answers: for the statistics. num_prompts: each
  // of them sends a last response.
  OpenRequest(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request, uint64_t start_ns,
              std::shared_ptr<ModelMetrics> metrics, size_t num_answers = 1, size_t num_prompts = 1);
  ~OpenRequest();
  OpenRequest(const OpenRequest&) = delete;
  OpenRequest& operator=(const OpenRequest&) = delete;

  bool is_open() const { return request_ != nullptr; }
  size_t num_prompts() const { return num_prompts_; }  // that end it together
  // No one waits any more: the request is completed, or its client is gone.
  bool is_over() const;
  void mark_output();  // the first one counts
  // Sends what `fill` adds to a response; the last end completes the request. Where that fails, so does the
  // request. what: "a response", for the error.
  void send(bool is_last, const char* what, const std::function<void(ResponseBuilder&)>& fill);
  // Completes the request with an error, unless it is completed.
  void fail(Failure failure, const std::string& message);

 private:
  void complete(bool is_success);

  TRITONBACKEND_ModelInstance* const instance_;
  TRITONBACKEND_Request* request_;  // null once completed
  OwnedResponseFactory factory_;
  const std::shared_ptr<ModelMetrics> metrics_;
  const size_t num_answers_;
  const size_t num_prompts_;
  size_t num_ends_left_;  // of the prompts'
  const uint64_t start_ns_;
  uint64_t first_output_ns_ = 0;
};

}  // namespace quire::triton
