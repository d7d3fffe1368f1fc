// What a new request is checked for against the engine's limits.
#pragma once

#include <cstdint>

#include "quire/config.h"
#include "quire/request.h"

namespace quire {

// Returns how many tokens the request may have, prompt and output. max_total_tokens: of any request. Throws
// InvalidArgument: prompt_ids, max_tokens, min_tokens.
int32_t max_total_tokens_of(const NewRequest& request, const EngineConfig& config, int32_t max_total_tokens);

}  // namespace quire
