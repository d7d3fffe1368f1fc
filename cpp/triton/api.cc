#include "api.h"

#include <chrono>
#include <limits>

namespace quire::triton {

void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const ServerError thrown(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  throw thrown;
}

void log_if_failed(TRITONSERVER_Error* error, const char* what) {
  if (error == nullptr) return;
  QUIRE_LOG(ERROR, std::string(what) + ": " + TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
}

TRITONSERVER_Error* to_triton(const std::exception& error) {
  auto code = TRITONSERVER_ERROR_INTERNAL;
  if (const auto* server_error = dynamic_cast<const ServerError*>(&error)) {
    code = server_error->code();
  } else if (dynamic_cast<const InvalidArgument*>(&error) != nullptr) {
    code = TRITONSERVER_ERROR_INVALID_ARG;
  }
  return TRITONSERVER_ErrorNew(code, error.what());
}

void log_message(TRITONSERVER_LogLevel level, const char* file, int line, const std::string& message) {
  TRITONSERVER_Error* error = TRITONSERVER_LogMessage(level, file, line, message.c_str());
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
}

void release(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request, bool is_success,
             uint64_t start_ns, uint64_t first_output_ns, uint64_t end_ns) {
  log_if_failed(TRITONBACKEND_ModelInstanceReportStatistics(instance, request, is_success, start_ns, start_ns,
                                                            first_output_ns, end_ns),
                "reporting statistics");
  log_if_failed(TRITONBACKEND_RequestRelease(request, TRITONSERVER_REQUEST_RELEASE_ALL),
                "releasing a request");
}

std::string take_json(TRITONSERVER_Message* message) {
  const Owned<TRITONSERVER_Message, TRITONSERVER_MessageDelete> owned(message);
  const char* base = nullptr;
  size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &base, &size));
  return {base, size};
}

uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch() /
                               std::chrono::nanoseconds(1));
}

InputTensor read_input(TRITONBACKEND_Request* request, uint32_t index, std::string& joined) {
  TRITONBACKEND_Input* input = nullptr;
  check(TRITONBACKEND_RequestInputByIndex(request, index, &input));
  InputTensor tensor;
  const char* name = nullptr;
  const int64_t* shape = nullptr;
  uint32_t num_dims = 0;
  uint64_t byte_size = 0;
  uint32_t num_buffers = 0;
  check(
      TRITONBACKEND_InputProperties(input, &name, &tensor.type, &shape, &num_dims, &byte_size, &num_buffers));
  tensor.name = name;
  tensor.shape = {shape, num_dims};

  if (num_buffers > 1) joined.clear();
  for (uint32_t i = 0; i < num_buffers; ++i) {
    const void* buffer = nullptr;
    uint64_t size = 0;
    auto memory = TRITONSERVER_MEMORY_CPU;
    int64_t memory_id = 0;
    check(TRITONBACKEND_InputBuffer(input, i, &buffer, &size, &memory, &memory_id));
    if (memory == TRITONSERVER_MEMORY_GPU) {
      throw InvalidArgument(name, "a tensor in GPU memory", "a tensor in CPU memory");
    }
    if (num_buffers == 1) {
      tensor.bytes = {static_cast<const char*>(buffer), size};
    } else {
      joined.append(static_cast<const char*>(buffer), size);
    }
  }
  if (num_buffers > 1) tensor.bytes = joined;
  return tensor;
}

InputTensor read_output(TRITONSERVER_InferenceResponse* response, uint32_t index) {
  InputTensor tensor;
  const char* name = nullptr;
  const int64_t* shape = nullptr;
  uint64_t num_dims = 0;
  const void* base = nullptr;
  size_t byte_size = 0;
  auto memory = TRITONSERVER_MEMORY_CPU;  // as its allocator, which is ours, makes it
  int64_t memory_id = 0;
  void* userp = nullptr;
  check(TRITONSERVER_InferenceResponseOutput(response, index, &name, &tensor.type, &shape, &num_dims, &base,
                                             &byte_size, &memory, &memory_id, &userp));
  tensor.name = name;
  tensor.shape = {shape, num_dims};
  tensor.bytes = {static_cast<const char*>(base), byte_size};
  return tensor;
}

std::vector<Parameter> read_parameters(TRITONBACKEND_Request* request) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestParameterCount(request, &count));
  std::vector<Parameter> parameters(count);
  for (uint32_t i = 0; i < count; ++i) {
    auto& [name, given] = parameters[i];
    auto type = TRITONSERVER_PARAMETER_STRING;
    const void* value = nullptr;
    check(TRITONBACKEND_RequestParameter(request, i, &name, &type, &value));
    switch (type) {
      case TRITONSERVER_PARAMETER_STRING:
        given = static_cast<const char*>(value);
        break;
      case TRITONSERVER_PARAMETER_INT:
        given = *static_cast<const int64_t*>(value);
        break;
      case TRITONSERVER_PARAMETER_BOOL:
        given = *static_cast<const bool*>(value);
        break;
      case TRITONSERVER_PARAMETER_DOUBLE:
        given = *static_cast<const double*>(value);
        break;
      case TRITONSERVER_PARAMETER_BYTES:
        throw InvalidArgument(name, "bytes", "a string, a number or a boolean");
    }
  }
  return parameters;
}

bool is_cancelled(TRITONBACKEND_Request* request) {
  bool is_cancelled = false;
  check(TRITONBACKEND_RequestIsCancelled(request, &is_cancelled));
  return is_cancelled;
}

bool has_stopped(TRITONSERVER_Server* server) {
  bool is_live = false;
  TRITONSERVER_Error* error = TRITONSERVER_ServerIsLive(server, &is_live);
  if (error == nullptr) return false;
  TRITONSERVER_ErrorDelete(error);
  return true;
}

uint32_t string_size(size_t size) {
  if (size > std::numeric_limits<uint32_t>::max()) {
    throw ServerError(TRITONSERVER_ERROR_INTERNAL, "an output of " + std::to_string(size) +
                                                       " bytes; Triton's strings have less than 4 GiB");
  }
  return static_cast<uint32_t>(size);
}

ResponseBuilder::ResponseBuilder(TRITONBACKEND_Request* request)
    : response_(make_owned<OwnedResponse>([&](auto** r) { return TRITONBACKEND_ResponseNew(r, request); })) {}

ResponseBuilder::ResponseBuilder(TRITONBACKEND_ResponseFactory* factory)
    : response_(make_owned<OwnedResponse>(
          [&](auto** r) { return TRITONBACKEND_ResponseNewFromFactory(r, factory); })) {}

bool is_requested(TRITONBACKEND_Request* request, std::string_view output) {
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(request, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(request, i, &name));
    if (name == output) return true;
  }
  return false;
}

char* ResponseBuilder::add(const char* name, TRITONSERVER_DataType type, int64_t count, size_t byte_size) {
  return add(name, type, std::span(&count, 1), byte_size);
}

char* ResponseBuilder::add(const char* name, TRITONSERVER_DataType type, std::span<const int64_t> shape,
                           size_t byte_size) {
  TRITONBACKEND_Output* output = nullptr;
  check(TRITONBACKEND_ResponseOutput(response_.get(), &output, name, type, shape.data(),
                                     static_cast<uint32_t>(shape.size())));
  void* buffer = nullptr;
  auto memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_OutputBuffer(output, &buffer, byte_size, &memory, &memory_id));
  if (memory == TRITONSERVER_MEMORY_GPU) {
    throw InvalidArgument(name, "an output buffer in GPU memory", "an output buffer in CPU memory");
  }
  return static_cast<char*>(buffer);
}

void ResponseBuilder::add_string(const char* name, std::string_view text) {
  add_values(name, TRITONSERVER_TYPE_BYTES, 1, [&](size_t) { return text; });
}

void ResponseBuilder::send(bool is_final) {
  // Given away, whatever the call returns.
  check(TRITONBACKEND_ResponseSend(response_.release(), is_final ? TRITONSERVER_RESPONSE_COMPLETE_FINAL : 0,
                                   nullptr));
}

void ResponseBuilder::send_error(const std::exception& exception) {
  TRITONSERVER_Error* error = to_triton(exception);
  TRITONSERVER_Error* failure =
      TRITONBACKEND_ResponseSend(response_.release(), TRITONSERVER_RESPONSE_COMPLETE_FINAL, error);
  TRITONSERVER_ErrorDelete(error);
  check(failure);
}

void answer_with_error(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request,
                       const std::exception& exception, uint64_t start_ns) {
  try {
    ResponseBuilder(request).send_error(exception);
  } catch (const std::exception& failure) {
    QUIRE_LOG(ERROR, std::string("an error could not be answered: ") + failure.what());
  }
  const uint64_t end_ns = now_ns();
  release(instance, request, false, start_ns, end_ns, end_ns);
}

}  // namespace quire::triton
