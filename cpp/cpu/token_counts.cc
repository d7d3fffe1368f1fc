#include <algorithm>

#include "check.h"
#include "quire/cpu/sampling.h"

namespace quire::cpu {

void token_counts(const TokenCountsParams& p) {
  constexpr int kInPrompt = 0x8000, kMaxCount = 0x7fff;
  check_positive("vocab_size", p.vocab_size);
  for (int32_t seq_idx = 0; seq_idx < p.num_seqs; ++seq_idx) {
    uint16_t* row = p.token_counts + static_cast<int64_t>(p.rows[seq_idx]) * p.vocab_size;
    std::fill_n(row, p.vocab_size, uint16_t{0});
    const int32_t first = p.token_offsets[seq_idx], prompt_end = first + p.prompt_lens[seq_idx];
    for (int32_t i = first; i < p.token_offsets[seq_idx + 1]; ++i) {
      const int32_t id = p.token_ids[i];
      if (id < 0 || id >= p.vocab_size) continue;
      if (i < prompt_end) {
        row[id] |= kInPrompt;
      } else if ((row[id] & kMaxCount) != kMaxCount) {
        ++row[id];
      }
    }
  }
}

}  // namespace quire::cpu
