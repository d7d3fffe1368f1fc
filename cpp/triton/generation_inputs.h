// The inputs of the generation models: one table of name, type and the member that each sets.
#pragma once

#include <span>

#include "abi.h"
#include "api.h"
#include "generation_request.h"
#include "model_settings.h"

namespace quire::triton {

struct GenerationInput {
  const char* name;
  TRITONSERVER_DataType type;
  // Throws InvalidArgument that names the tensor when its shape or its content does not fit. The type fits.
  void (*set)(GenerationRequest& request, const InputTensor& tensor);
  bool is_list = false;
  bool is_field = true;  // of a client's; false: between the stages, a tensor only
};

// Of role generation or unary.
std::span<const GenerationInput> generation_inputs(Role role);

}  // namespace quire::triton
