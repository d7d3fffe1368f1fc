#include "intake.h"

#include <algorithm>
#include <string>
#include <utility>

#include "quire/error.h"

namespace quire {

int32_t max_total_tokens_of(const NewRequest& request, const EngineConfig& config, int32_t max_total_tokens) {
  const auto num_prompt = static_cast<int64_t>(request.prompt_ids.size());
  if (num_prompt == 0) throw InvalidArgument("prompt_ids", "no tokens", "at least 1 token");
  if (num_prompt >= config.max_model_len) {
    throw InvalidArgument("prompt_ids", std::to_string(num_prompt) + " tokens",
                          "1 to " + std::to_string(config.max_model_len - 1) + " tokens (max_model_len " +
                              std::to_string(config.max_model_len) + " must leave room for one more)");
  }
  const std::string pool = "the KV cache has " + std::to_string(config.num_blocks) + " blocks of " +
                           std::to_string(config.block_size) + " tokens";
  if (num_prompt >= max_total_tokens) {
    throw InvalidArgument("prompt_ids", std::to_string(num_prompt) + " tokens",
                          "1 to " + std::to_string(max_total_tokens - 1) + " tokens (" + pool + ")");
  }
  for (int32_t id : request.prompt_ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw InvalidArgument("prompt_ids", std::to_string(id),
                            "0 to " + std::to_string(config.vocab_size - 1) + " (vocab_size)");
    }
  }
  const int32_t limit = config.max_output_tokens > 0 ? config.max_output_tokens : INT32_MAX;
  for (const auto& [field, value] : {std::pair("max_tokens", request.params.max_tokens),
                                     std::pair("min_tokens", request.params.min_tokens)}) {
    if (value > limit) {
      throw InvalidArgument(field, std::to_string(value),
                            "at most " + std::to_string(limit) + " (max_output_tokens of the server)");
    }
  }
  if (request.params.max_tokens == 0) {
    return static_cast<int32_t>(std::min<int64_t>(max_total_tokens, num_prompt + limit));
  }
  const int64_t wanted = std::min<int64_t>(num_prompt + request.params.max_tokens, config.max_model_len);
  if (wanted > max_total_tokens) {
    throw InvalidArgument(
        "max_tokens", std::to_string(request.params.max_tokens),
        "at most " + std::to_string(max_total_tokens - num_prompt) + " with this prompt (" + pool + ")");
  }
  return static_cast<int32_t>(wanted);
}

}  // namespace quire
