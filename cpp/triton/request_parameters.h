// Request parameters of a request to generation: fields that are given by name instead of as tensors.
//
// Names are those of the input tensors and other systems' names for them (docs/request_fields.md). A value is
// what Triton hands over, a string, a number or a boolean; lists and objects come as JSON strings.
#pragma once

#include <functional>
#include <optional>
#include <regex>
#include <span>
#include <string_view>

#include "generation_inputs.h"

namespace quire::triton {

// Reads the parameters of `request` into `result`, except Triton's own and those that match
// `forwarded_headers`. has_tensor: whether the request has an input of that name, which may not come twice.
// Throws InvalidArgument that names the parameter as it is spelled.
void read_request_parameters(TRITONBACKEND_Request* request, std::span<const GenerationInput> inputs,
                             const std::function<bool(std::string_view)>& has_tensor,
                             const std::optional<std::regex>& forwarded_headers, GenerationRequest& result);

}  // namespace quire::triton
