// Why a request is answered with an error: decides the code that its client sees, and where it is counted.
#pragma once

#include <exception>

#include "abi.h"
#include "api.h"

namespace quire::triton {

enum class Failure : uint8_t { kInvalid, kUnavailable, kInternal, kCancelled, kDeadline };

inline TRITONSERVER_Error_Code code_of(Failure failure) {
  switch (failure) {
    case Failure::kInvalid:
      return TRITONSERVER_ERROR_INVALID_ARG;
    case Failure::kUnavailable:
      return TRITONSERVER_ERROR_UNAVAILABLE;
    case Failure::kInternal:
      return TRITONSERVER_ERROR_INTERNAL;
    // Triton has no code for deadlines. Nobody else sees this one: who cancels does not read his answer.
    // (Over HTTP Triton 2.51 says 400 whatever the code is; the message begins with "deadline exceeded".)
    case Failure::kCancelled:
    case Failure::kDeadline:
      return TRITONSERVER_ERROR_CANCELLED;
  }
  return TRITONSERVER_ERROR_INTERNAL;
}

// The kind of failure that an exception stands for; to_triton() gives the same code.
inline Failure failure_of(const std::exception& error) {
  const auto* server_error = dynamic_cast<const ServerError*>(&error);
  if (server_error == nullptr) {
    return dynamic_cast<const InvalidArgument*>(&error) != nullptr ? Failure::kInvalid : Failure::kInternal;
  }
  switch (server_error->code()) {
    case TRITONSERVER_ERROR_CANCELLED:
      return Failure::kCancelled;
    case TRITONSERVER_ERROR_UNAVAILABLE:
      return Failure::kUnavailable;
    case TRITONSERVER_ERROR_INVALID_ARG:
    case TRITONSERVER_ERROR_UNSUPPORTED:
    case TRITONSERVER_ERROR_NOT_FOUND:
      return Failure::kInvalid;
    default:
      return Failure::kInternal;
  }
}

}  // namespace quire::triton
