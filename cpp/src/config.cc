#include "quire/config.h"

#include <cstdint>
#include <sstream>
#include <string>

#include "quire/error.h"

namespace quire {
namespace {

void require_at_least(const char* field, int32_t given, int32_t lowest) {
  if (given < lowest)
    throw InvalidArgument(field, std::to_string(given), "at least " + std::to_string(lowest));
}

}  // namespace

void validate(const EngineConfig& config) {
  require_at_least("block_size", config.block_size, 1);
  require_at_least("num_blocks", config.num_blocks, 1);
  require_at_least("max_num_seqs", config.max_num_seqs, 1);
  require_at_least("max_num_batched_tokens", config.max_num_batched_tokens, 1);
  require_at_least("max_model_len", config.max_model_len, 2);  // one prompt token, one output token
  require_at_least("max_output_tokens", config.max_output_tokens, 0);
  require_at_least("max_batches_in_flight", config.max_batches_in_flight, 1);
  require_at_least("vocab_size", config.vocab_size, 1);
  if (!(config.watermark >= 0.0f && config.watermark < 1.0f)) {
    std::ostringstream given;
    given << config.watermark;
    throw InvalidArgument("watermark", given.str(), "[0, 1)");
  }
  if (!config.enable_chunked_prefill && config.max_num_batched_tokens < config.max_model_len) {
    throw InvalidArgument("max_num_batched_tokens", std::to_string(config.max_num_batched_tokens),
                          "at least max_model_len (" + std::to_string(config.max_model_len) +
                              ") without chunked prefill: a prompt is scheduled whole");
  }
  // Indices into the block tables are int32.
  const int64_t num_entries = static_cast<int64_t>(config.max_num_seqs) * config.max_blocks_per_request();
  if (num_entries > INT32_MAX) {
    throw InvalidArgument("max_num_seqs", std::to_string(config.max_num_seqs),
                          "at most " + std::to_string(INT32_MAX / config.max_blocks_per_request()) +
                              " with max_model_len " + std::to_string(config.max_model_len) +
                              " and block_size " + std::to_string(config.block_size));
  }
  if (config.eos_token_ids.size() > kMaxEosTokenIds) {
    throw InvalidArgument("eos_token_ids", std::to_string(config.eos_token_ids.size()) + " ids",
                          "at most " + std::to_string(kMaxEosTokenIds));
  }
  for (int32_t id : config.eos_token_ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw InvalidArgument("eos_token_ids", std::to_string(id),
                            "0 to " + std::to_string(config.vocab_size - 1) + " (vocab_size)");
    }
  }
}

}  // namespace quire
