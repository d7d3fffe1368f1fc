#include "intake.h"

#include <algorithm>
#include <string>
#include <utility>

#include "quire/error.h"

namespace quire {
namespace {

// Nothing in the prompt takes part in the text.
bool is_first(const NewRequest& request, const TokenTable& table) {
  return std::none_of(request.prompt_ids.begin(), request.prompt_ids.end(), [&](int32_t id) {
    return table.contributes(id, request.params.skip_special_tokens) && table.ends_start(id);
  });
}

}  // namespace

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

std::unique_ptr<LiveRequest> make_live_request(const NewRequest& request, const EngineConfig& config,
                                               const TokenTable& table, int32_t max_total_tokens,
                                               uint64_t seed, uint32_t index) {
  const SamplingParams& params = request.params;
  auto live = std::make_unique<LiveRequest>(
      OutputGate(table, params, is_first(request, table),
                 table.open_text(request.prompt_ids, params.skip_special_tokens)));
  live->request_id = request.request_id;
  live->index = index;
  live->num_prompt_tokens = static_cast<int32_t>(request.prompt_ids.size());
  live->max_total_tokens = max_total_tokens;
  live->token_ids.reserve(static_cast<size_t>(max_total_tokens));
  live->token_ids = request.prompt_ids;
  live->temperature = params.temperature;
  live->top_p = params.top_p;
  live->top_k = std::max(params.top_k, 0);
  live->min_tokens = params.min_tokens;
  live->seed = sequence_seed(seed, index);
  live->include_stop = params.include_stop_str_in_output;
  live->priority = request.priority;
  live->cold.arrival_ns = request.arrival_ns;
  live->cold.tokenize_ns = request.tokenize_ns;
  live->cold.deadline_ns = request.deadline_ns;
  live->return_receipt = request.return_receipt;

  const auto sort_unique = [](std::vector<int32_t>& ids) {
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  };
  const std::vector<int32_t>& eos = config.eos_token_ids;
  live->end_ids = params.stop_token_ids;
  if (!params.ignore_eos) live->end_ids.insert(live->end_ids.end(), eos.begin(), eos.end());
  sort_unique(live->end_ids);
  for (int32_t id : params.stop_token_ids) {
    const bool is_eos = !params.ignore_eos && std::find(eos.begin(), eos.end(), id) != eos.end();
    if (!is_eos) live->stop_token_ids.push_back(id);
  }
  sort_unique(live->stop_token_ids);
  if (params.min_tokens > 0) {
    live->mask_ids = params.stop_token_ids;
    live->mask_ids.insert(live->mask_ids.end(), eos.begin(), eos.end());
    sort_unique(live->mask_ids);
  }
  // Sequence 0 is the one that computes the prompt.
  const int32_t prompt_logprobs = index == 0 ? params.prompt_logprobs : -1;
  // The kernels know no "0 likeliest ones".
  if (params.logprobs >= 0) live->num_logprobs = std::max(params.logprobs, 1);
  if (prompt_logprobs >= 0) live->num_prompt_logprobs = std::max(prompt_logprobs, 1);
  if (params.logprobs >= 0 || prompt_logprobs >= 0) {
    live->logprobs =
        std::make_unique<RequestLogprobs>(params.logprobs, prompt_logprobs, live->num_prompt_tokens);
  }
  return live;
}

}  // namespace quire
