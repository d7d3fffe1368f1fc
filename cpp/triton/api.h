// Triton's C API as C++: errors become exceptions, tensors become spans, a response is built in a few calls.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "abi.h"
#include "quire/error.h"

namespace quire::triton {

// An error with the code that the client shall see (HTTP status, gRPC code).
class ServerError : public Error {
 public:
  ServerError(TRITONSERVER_Error_Code code, const std::string& message) : Error(message), code_(code) {}
  TRITONSERVER_Error_Code code() const { return code_; }

 private:
  TRITONSERVER_Error_Code code_;
};

// Throws ServerError, and deletes the error, when there is one.
void check(TRITONSERVER_Error* error);
// For calls whose failure changes nothing: logs it.
void log_if_failed(TRITONSERVER_Error* error, const char* what);

// An object of the server's that is ours to delete.
template <auto kDelete>
struct Deleter {
  template <class T>
  void operator()(T* object) const {
    log_if_failed(kDelete(object), "deleting an object of the server");
  }
};
template <class T, auto kDelete>
using Owned = std::unique_ptr<T, Deleter<kDelete>>;
using OwnedResponse = Owned<TRITONBACKEND_Response, TRITONBACKEND_ResponseDelete>;
using OwnedResponseFactory = Owned<TRITONBACKEND_ResponseFactory, TRITONBACKEND_ResponseFactoryDelete>;
// Calls make(&object), which sets it or gives an error.
template <class Object, class Make>
Object make_owned(Make&& make) {
  typename Object::pointer made = nullptr;
  check(make(&made));
  return Object(made);
}

// Ends a request whose last response has been sent: statistics of an instance, release.
void release(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request, bool is_success,
             uint64_t start_ns, uint64_t first_output_ns, uint64_t end_ns);
// Answers a request with the exception as its only response, and releases it.
void answer_with_error(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                       const std::exception& exception, uint64_t start_ns);
// Calls answer(request, start_ns) for each request, which sends its only response, or throws what is to be
// answered; and releases it.
template <class Answer>
void answer_each(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count,
                 Answer&& answer);
// The server's form of an exception: InvalidArgument is INVALID_ARG, ServerError keeps its code, others are
// INTERNAL.
TRITONSERVER_Error* to_triton(const std::exception& error);

void log_message(TRITONSERVER_LogLevel level, const char* file, int line, const std::string& message);
#define QUIRE_LOG(level, message) \
  ::quire::triton::log_message(TRITONSERVER_LOG_##level, __FILE__, __LINE__, message)

// The message as JSON; deletes it.
std::string take_json(TRITONSERVER_Message* message);

uint64_t now_ns();  // steady clock

// One input tensor of a request; views live as long as the request.
struct InputTensor {
  std::string_view name;
  TRITONSERVER_DataType type = TRITONSERVER_TYPE_INVALID;
  std::span<const int64_t> shape;
  std::string_view bytes;

  std::string shape_text() const {  // "[2,3]"
    std::string text;
    for (const int64_t size : shape) {
      text += text.empty() ? "[" : ",";
      text += std::to_string(size);
    }
    return text.empty() ? "[]" : text + "]";
  }
};

// `joined` holds the bytes of a tensor that comes in several buffers.
InputTensor read_input(TRITONBACKEND_Request* request, uint32_t index, std::string& joined);

// An output of a response that came to us, as the input that it is here; its views live as long as the
// response.
InputTensor read_output(TRITONSERVER_InferenceResponse* response, uint32_t index);

// A parameter of a request; views live as long as the request. The alternatives are in the order of
// TRITONSERVER_ParameterType.
struct Parameter {
  const char* name;
  std::variant<const char*, int64_t, bool, double> value;
};
std::vector<Parameter> read_parameters(TRITONBACKEND_Request* request);

// Whether the server knows that the client has gone.
bool is_cancelled(TRITONBACKEND_Request* request);

// Whether the server has stopped its models: they answer what they have, and take no more, not even from an
// ensemble.
bool has_stopped(TRITONSERVER_Server* server);

// The length of a string as a STRING tensor has it; throws ServerError where it does not fit.
uint32_t string_size(size_t size);

// Whether the client, or the ensemble, wants this output.
bool is_requested(TRITONBACKEND_Request* request, std::string_view output);

// A response under construction: add outputs, then send; dropped without sending when an exception passes.
class ResponseBuilder {
 public:
  explicit ResponseBuilder(TRITONBACKEND_Request* request);
  explicit ResponseBuilder(TRITONBACKEND_ResponseFactory* factory);

  // Memory of a new output of shape [count], to be filled before send().
  char* add(const char* name, TRITONSERVER_DataType type, int64_t count, size_t byte_size);
  char* add(const char* name, TRITONSERVER_DataType type, std::span<const int64_t> shape, size_t byte_size);
  void add_string(const char* name, std::string_view text);  // STRING [1]
  // [count] of value(0), value(1), ..., numbers of the type or strings; value is called more than once.
  template <class Value>
  void add_values(const char* name, TRITONSERVER_DataType type, size_t count, Value&& value);
  void send(bool is_final);
  void send_error(const std::exception& exception);  // final

 private:
  OwnedResponse response_;
};

template <class Value>
void ResponseBuilder::add_values(const char* name, TRITONSERVER_DataType type, size_t count, Value&& value) {
  using T = std::remove_cvref_t<decltype(value(0))>;
  constexpr bool kIsText = std::is_convertible_v<T, std::string_view>;
  size_t size = 0;
  if constexpr (kIsText) {
    for (size_t i = 0; i < count; ++i) size += sizeof(uint32_t) + value(i).size();
  } else {
    size = count * sizeof(T);
  }
  char* out = add(name, type, static_cast<int64_t>(count), size);
  const auto write = [&](const void* bytes, size_t num_bytes) {
    if (num_bytes > 0) std::memcpy(out, bytes, num_bytes);
    out += num_bytes;
  };
  for (size_t i = 0; i < count; ++i) {
    const T& one = value(i);
    if constexpr (kIsText) {
      const uint32_t length = string_size(one.size());
      write(&length, sizeof(length));
      write(one.data(), length);
    } else {
      write(&one, sizeof(one));
    }
  }
}

template <class Answer>
void answer_each(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count,
                 Answer&& answer) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t start_ns = now_ns();
    try {
      answer(requests[i], start_ns);
    } catch (const std::exception& error) {
      answer_with_error(instance, requests[i], error, start_ns);
      continue;
    }
    const uint64_t end_ns = now_ns();
    release(instance, requests[i], true, start_ns, end_ns, end_ns);
  }
}

}  // namespace quire::triton
