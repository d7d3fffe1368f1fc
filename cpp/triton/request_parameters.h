// Request parameters of a request to generation: its fields by name.
//
// Names are those of the fields and other systems' names for them (docs/request_fields.md). A value is what
// Triton hands over, a string, a number or a boolean; lists and objects come as JSON strings.
#pragma once

#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "quire/request_tensor.h"

namespace quire::triton {

// Reads the parameters of `request` into `fields`, except Triton's own and those that match
// `forwarded_headers`; `aliases` gets the field and the name of each that came under another name. Throws
// InvalidArgument that names the parameter as it is spelled.
void read_request_parameters(TRITONBACKEND_Request* request,
                             const std::optional<std::regex>& forwarded_headers, RequestTensor& fields,
                             std::vector<std::pair<std::string, std::string>>& aliases);

}  // namespace quire::triton
