// Role tokenizer: a request's tensors and parameters go to a Python process of ours, ids and settings come
// back.
//
// Why not Triton's Python backend: its process is never replaced when it dies, and is held by one request as
// long as that takes. Here a request ends in bounded time, and what it does to a process touches no other
// request.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "abi.h"
#include "worker_keeper.h"

namespace quire::triton {

// One instance, with one process; Triton calls it from one thread at a time.
class Tokenizer {
 public:
  // Throws when the process cannot be started.
  Tokenizer(std::shared_ptr<TokenizerModel> model, TRITONBACKEND_ModelInstance* instance)
      : model_(model), instance_(instance), keeper_(std::move(model)) {}

  // Takes over every request of the batch and answers it.
  void execute(TRITONBACKEND_Request** requests, uint32_t count);

 private:
  void answer(TRITONBACKEND_Request* request, uint64_t arrival_ns);
  TokenizerWorker::Answer ask(TRITONBACKEND_Request* request, std::string_view frame);

  const std::shared_ptr<TokenizerModel> model_;
  TRITONBACKEND_ModelInstance* const instance_;
  WorkerKeeper keeper_;
};

}  // namespace quire::triton
