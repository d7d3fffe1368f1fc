// The end of a kStep payload: logprobs of its releases.
#pragma once

#include <string>

#include "quire/request.h"
#include "wire_bytes.h"

namespace quire::wire {

void put_logprobs(std::string& out, const StepOutputs& frame);
// frame: with its releases. Throws Error where they do not fit.
void get_logprobs(Reader& reader, StepOutputs& frame);

}  // namespace quire::wire
