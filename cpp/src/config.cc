#include "quire/config.h"

#include <cstdint>
#include <sstream>
#include <string>
#include <type_traits>

#include "quire/error.h"

namespace quire {
namespace {

// Integers are at least 1, or their default where that is 0 and need not be given.
template <class M>
void require_lowest(const M& member, const EngineConfig& config) {
  if constexpr (std::is_same_v<typename M::Type, int32_t>) {
    const bool can_be_0 = M::kBinding == Binding::kOptional && EngineConfig().*member.pointer == 0;
    const int32_t given = config.*member.pointer, lowest = can_be_0 ? 0 : 1;
    if (given < lowest)
      throw InvalidArgument(member.name, std::to_string(given), "at least " + std::to_string(lowest));
  }
}

}  // namespace

void validate(const EngineConfig& config) {
  for_each_member<EngineConfig>([&](const auto& member) { require_lowest(member, config); });
  if (config.max_model_len < 2)
    throw InvalidArgument("max_model_len", "1", "at least 2: a prompt and an answer");
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
