// What a new request is checked for against the engine's limits, and what becomes of it.
#pragma once

#include <cstdint>
#include <memory>

#include "live_request.h"
#include "quire/config.h"
#include "quire/request.h"

namespace quire {

// Returns how many tokens the request may have, prompt and output. max_total_tokens: of any request. Throws
// InvalidArgument: prompt_ids, max_tokens, min_tokens.
int32_t max_total_tokens_of(const NewRequest& request, const EngineConfig& config, int32_t max_total_tokens);

// Sequence `index` of a valid request. seed: of the request.
std::unique_ptr<LiveRequest> make_live_request(const NewRequest& request, const EngineConfig& config,
                                               const TokenTable& table, int32_t max_total_tokens,
                                               uint64_t seed, uint32_t index);

}  // namespace quire
