// Requests to models of role unary on their way to generation, those with a tokenizer model through that one.
//
//   request -> tokenizer: its inputs, parameters and id as they are -> Generation::execute_unary()
//
// An ensemble would do the same, but Triton's tells a running step nothing of a cancellation. Here the model
// has the request itself: the generation thread watches it while it is tokenized, and afterwards as it
// watches all others.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "api.h"
#include "model_settings.h"

namespace quire::triton {

class Generation;

// Where requests to a model of role unary come from; lives as long as one of them.
struct UnaryModel {
  TRITONBACKEND_ModelInstance* instance;
  TRITONSERVER_Server* server;
  const ModelSettings& settings;
};

// Takes over every request of the batch and answers it, now (errors) or later.
void execute_unary(const UnaryModel& model, TRITONBACKEND_Request** requests, uint32_t count);

// A request while the tokenizer model works on it.
//
// Invariant: the server's request is handed on to generation, or answered with an error, exactly once: when
// the tokenizer has answered and has released its own request, whose inputs are buffers of the former.
class TokenizerCall {
 public:
  TokenizerCall(const UnaryModel& model, std::shared_ptr<Generation> generation,
                TRITONBACKEND_Request* request, uint64_t start_ns)
      : model_(model), request_(request), start_ns_(start_ns), generation_(std::move(generation)) {}
  TokenizerCall(const TokenizerCall&) = delete;
  TokenizerCall& operator=(const TokenizerCall&) = delete;

  // Takes over the server's request, and keeps `call` alive until it is handed on. Throws, without taking it
  // over, when the tokenizer cannot be asked.
  static void start(const std::shared_ptr<TokenizerCall>& call);
  // Tells the tokenizer when the client has gone. False: the request is handed on. Any thread.
  bool watch();

 private:
  using OwnedRequest = Owned<TRITONSERVER_InferenceRequest, TRITONSERVER_InferenceRequestDelete>;
  using OwnedResponse = Owned<TRITONSERVER_InferenceResponse, TRITONSERVER_InferenceResponseDelete>;

  void copy_inputs();
  void copy_parameters();
  static void on_response(TRITONSERVER_InferenceResponse* response, const uint32_t flags, void* call);
  static void on_release(TRITONSERVER_InferenceRequest* inner, const uint32_t flags, void* call);
  void end_one();
  void hand_on();

  const UnaryModel model_;
  TRITONBACKEND_Request* const request_;  // ours, and valid, as long as inner_ is there
  const uint64_t start_ns_;
  std::shared_ptr<Generation> generation_;  // null once handed on
  std::shared_ptr<TokenizerCall> self_;     // while the tokenizer works
  std::atomic<int> num_open_{2};            // the response and the release are still to come
  OwnedResponse response_;

  std::mutex mutex_;  // guards the rest once started
  OwnedRequest inner_;
  bool is_told_ = false;  // the tokenizer, of the cancellation
  bool is_handed_on_ = false;
};

}  // namespace quire::triton
