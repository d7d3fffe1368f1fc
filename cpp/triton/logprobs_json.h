// Logprobs as the JSON text of Triton's vLLM backend: for each place an object of
// {"<token id>": {"logprob": -0.5, "rank": 1, "decoded_token": " the"}, ...}, the place's own token first.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "quire/logprobs.h"
#include "quire/token_table.h"

namespace quire::triton {

// A list with one object for each `num_per_place` entries. is_prompt: null comes first, for the first
// token, which nothing predicts. A logprob that is not finite is null.
std::string logprobs_json(std::span<const Logprob> entries, uint32_t num_per_place, bool is_prompt,
                          const TokenTable& token_table);

}  // namespace quire::triton
