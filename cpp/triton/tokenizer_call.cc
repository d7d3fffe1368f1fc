#include "tokenizer_call.h"

#include <cstdlib>
#include <string>
#include <variant>

#include "api.h"
#include "generation.h"
#include "registry.h"

namespace quire::triton {

namespace {

TRITONSERVER_Error* allocate(TRITONSERVER_ResponseAllocator*, const char*, size_t byte_size,
                             TRITONSERVER_MemoryType, int64_t, void*, void** buffer, void** buffer_userp,
                             TRITONSERVER_MemoryType* memory_type, int64_t* memory_type_id) {
  *buffer = byte_size == 0 ? nullptr : std::malloc(byte_size);
  *buffer_userp = nullptr;
  *memory_type = TRITONSERVER_MEMORY_CPU;
  *memory_type_id = 0;
  if (*buffer != nullptr || byte_size == 0) return nullptr;
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_UNAVAILABLE, "no memory for the tokenizer's answer");
}

TRITONSERVER_Error* release(TRITONSERVER_ResponseAllocator*, void* buffer, void*, size_t,
                            TRITONSERVER_MemoryType, int64_t) {
  std::free(buffer);
  return nullptr;
}

// One for all calls. Never destroyed, as the registry.
TRITONSERVER_ResponseAllocator* allocator() {
  static TRITONSERVER_ResponseAllocator* const instance = [] {
    TRITONSERVER_ResponseAllocator* made = nullptr;
    check(TRITONSERVER_ResponseAllocatorNew(&made, allocate, release, nullptr));
    return made;
  }();
  return instance;
}

}  // namespace

void execute_unary(const UnaryModel& model, TRITONBACKEND_Request** requests, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t start_ns = now_ns();
    std::shared_ptr<Generation> generation;
    std::shared_ptr<TokenizerCall> call;
    try {
      generation = registry::find(model.settings.generation_model, model.settings.folder);
      if (!model.settings.tokenizer_model.empty()) {
        call = std::make_shared<TokenizerCall>(model, generation, requests[i], start_ns);
        TokenizerCall::start(call);
      }
    } catch (const std::exception& error) {
      answer_with_error(model.instance, requests[i], error, start_ns);
      continue;
    }
    if (call) {
      generation->watch(call);
    } else {
      generation->execute_unary(model.instance, model.settings.dialect, requests[i], nullptr, start_ns);
    }
  }
}

void TokenizerCall::start(const std::shared_ptr<TokenizerCall>& call) {
  TokenizerCall& self = *call;
  const std::string& tokenizer = self.model_.settings.tokenizer_model;
  TRITONSERVER_InferenceRequest* inner = nullptr;
  try {
    check(TRITONSERVER_InferenceRequestNew(&inner, self.model_.server, tokenizer.c_str(), -1));
  } catch (const ServerError& error) {
    throw ServerError(TRITONSERVER_ERROR_UNAVAILABLE,
                      "tokenizer_model: no model '" + tokenizer + "' is loaded: " + error.what());
  }
  self.inner_.reset(inner);
  const char* id = nullptr;
  check(TRITONBACKEND_RequestId(self.request_, &id));
  check(TRITONSERVER_InferenceRequestSetId(inner, id));
  self.copy_inputs();
  self.copy_parameters();
  check(TRITONSERVER_InferenceRequestSetReleaseCallback(inner, on_release, &self));
  check(TRITONSERVER_InferenceRequestSetResponseCallback(inner, allocator(), nullptr, on_response, &self));
  self.self_ = call;
  TRITONSERVER_Error* error = TRITONSERVER_ServerInferAsync(self.model_.server, inner, nullptr);
  if (error != nullptr) self.self_.reset();
  check(error);
}

// The buffers stay where they are.
void TokenizerCall::copy_inputs() {
  uint32_t num_inputs = 0;
  check(TRITONBACKEND_RequestInputCount(request_, &num_inputs));
  for (uint32_t i = 0; i < num_inputs; ++i) {
    TRITONBACKEND_Input* input = nullptr;
    check(TRITONBACKEND_RequestInputByIndex(request_, i, &input));
    const char* name = nullptr;
    auto type = TRITONSERVER_TYPE_INVALID;
    const int64_t* shape = nullptr;
    uint32_t num_dims = 0;
    uint64_t byte_size = 0;
    uint32_t num_buffers = 0;
    check(TRITONBACKEND_InputProperties(input, &name, &type, &shape, &num_dims, &byte_size, &num_buffers));
    check(TRITONSERVER_InferenceRequestAddInput(inner_.get(), name, type, shape, num_dims));
    for (uint32_t j = 0; j < num_buffers; ++j) {
      const void* buffer = nullptr;
      uint64_t size = 0;
      auto memory = TRITONSERVER_MEMORY_CPU;
      int64_t memory_id = 0;
      check(TRITONBACKEND_InputBuffer(input, j, &buffer, &size, &memory, &memory_id));
      check(
          TRITONSERVER_InferenceRequestAppendInputData(inner_.get(), name, buffer, size, memory, memory_id));
    }
  }
}

void TokenizerCall::copy_parameters() {
  struct Set {
    TRITONSERVER_InferenceRequest* request;
    const char* name;
    TRITONSERVER_Error* operator()(const char* value) const {
      return TRITONSERVER_InferenceRequestSetStringParameter(request, name, value);
    }
    TRITONSERVER_Error* operator()(int64_t value) const {
      return TRITONSERVER_InferenceRequestSetIntParameter(request, name, value);
    }
    TRITONSERVER_Error* operator()(bool value) const {
      return TRITONSERVER_InferenceRequestSetBoolParameter(request, name, value);
    }
    TRITONSERVER_Error* operator()(double value) const {
      return TRITONSERVER_InferenceRequestSetDoubleParameter(request, name, value);
    }
  };
  for (const auto& [name, value] : read_parameters(request_)) {
    check(std::visit(Set{inner_.get(), name}, value));
  }
}

bool TokenizerCall::watch() {
  const std::lock_guard lock(mutex_);
  if (!inner_ || is_told_) return !is_handed_on_;
  try {
    is_told_ = is_cancelled(request_);
    if (is_told_) check(TRITONSERVER_InferenceRequestCancel(inner_.get()));
  } catch (const std::exception& error) {
    QUIRE_LOG(ERROR, std::string("passing a cancellation on: ") + error.what());
  }
  return true;
}

void TokenizerCall::on_response(TRITONSERVER_InferenceResponse* response, const uint32_t flags, void* call) {
  TokenizerCall& self = *static_cast<TokenizerCall*>(call);
  // One with several answers is no tokenizer; its first counts.
  OwnedResponse owned(response);
  if (!self.response_) self.response_ = std::move(owned);
  if ((flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL) != 0) self.end_one();
}

void TokenizerCall::on_release(TRITONSERVER_InferenceRequest*, const uint32_t, void* call) {
  TokenizerCall& self = *static_cast<TokenizerCall*>(call);
  {
    const std::lock_guard lock(self.mutex_);
    self.inner_.reset();
  }
  self.end_one();
}

void TokenizerCall::end_one() {
  if (--num_open_ > 0) return;
  const auto self = std::move(self_);
  hand_on();
  generation_.reset();
  const std::lock_guard lock(mutex_);
  is_handed_on_ = true;
}

void TokenizerCall::hand_on() {
  try {
    if (response_) check(TRITONSERVER_InferenceResponseError(response_.get()));
  } catch (const std::exception& error) {  // the tokenizer has counted it
    answer_with_error(model_.instance, request_, error, start_ns_);
    return;
  }
  try {
    if (is_cancelled(request_)) {
      throw ServerError(TRITONSERVER_ERROR_CANCELLED, "the client cancelled the request");
    }
    if (!response_) {
      throw ServerError(TRITONSERVER_ERROR_INTERNAL,
                        "tokenizer_model: model '" + model_.settings.tokenizer_model + "' answered nothing");
    }
  } catch (const std::exception& error) {
    generation_->metrics().count(failure_of(error));
    answer_with_error(model_.instance, request_, error, start_ns_);
    return;
  }
  generation_->execute_unary(model_.instance, model_.settings.dialect, request_, response_.get(), start_ns_);
}

}  // namespace quire::triton
