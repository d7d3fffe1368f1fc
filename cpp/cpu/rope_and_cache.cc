#include "quire/cpu/rope_and_cache.h"

#include "check.h"
#include "thread_pool.h"

namespace quire::cpu {

void rope_and_cache(const RopeAndCacheParams& p) {
  check_heads(p.num_q_heads, p.num_kv_heads, p.head_dim);
  check_default("kv_dtype", p.kv_dtype == KVDType::kSame);
  check_positive("block_size", p.block_size);
  for (int32_t i = 0; i < p.num_tokens; ++i) {
    if (p.positions[i] < 0 || p.positions[i] >= p.max_position) {
      throw InvalidArgument("positions[" + std::to_string(i) + "]", std::to_string(p.positions[i]),
                            "0 to max_position - 1 = " + std::to_string(p.max_position - 1));
    }
    if (p.slot_mapping[i] < -1 || p.slot_mapping[i] >= p.num_slots) {
      throw InvalidArgument("slot_mapping[" + std::to_string(i) + "]", std::to_string(p.slot_mapping[i]),
                            "-1 to num_slots - 1 = " + std::to_string(p.num_slots - 1));
    }
  }
  const int64_t work = static_cast<int64_t>(p.num_tokens) * (p.num_q_heads + 2 * p.num_kv_heads) * p.head_dim;
  const auto run = kernels().rope_and_cache[table_index(p.dtype)];
  parallel_for(work >= 1 << 18, p.num_tokens, 16, [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

}  // namespace quire::cpu
