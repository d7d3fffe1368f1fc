#include "quire/cpu/layers.h"

#include <cstring>

#include "check.h"
#include "thread_pool.h"

namespace quire::cpu {
namespace {

// Elements below which waking another thread costs more than it saves, and rows that one claim takes.
constexpr int64_t kLargeWork = 1 << 18;
constexpr int64_t kRowsPerClaim = 16;

}  // namespace

void rms_norm(const RmsNormParams& p) {
  check_positive("hidden_size", p.hidden_size);
  check_default("out_scale", p.out_scale == nullptr);
  const int64_t work = static_cast<int64_t>(p.num_rows) * p.hidden_size;
  const auto run = kernels().rms_norm[table_index(p.dtype)];
  parallel_for(work >= kLargeWork, p.num_rows, kRowsPerClaim,
               [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

void silu_mul(const SiluMulParams& p) {
  check_positive("intermediate_size", p.intermediate_size);
  check_default("out_scale", p.out_scale == nullptr);
  const int64_t work = 2 * static_cast<int64_t>(p.num_rows) * p.intermediate_size;
  const auto run = kernels().silu_mul[table_index(p.dtype)];
  parallel_for(work >= kLargeWork, p.num_rows, kRowsPerClaim,
               [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

void embedding(const EmbeddingParams& p) {
  check_positive("hidden_size", p.hidden_size);
  for (int32_t i = 0; i < p.num_tokens; ++i) {
    if (p.token_ids[i] < 0 || p.token_ids[i] >= p.vocab_size) {
      throw InvalidArgument("token_ids[" + std::to_string(i) + "]", std::to_string(p.token_ids[i]),
                            "0 to vocab_size - 1 = " + std::to_string(p.vocab_size - 1));
    }
  }
  const int64_t row_bytes = p.hidden_size * size_of(p.dtype);
  parallel_for(p.num_tokens * row_bytes >= 1 << 20, p.num_tokens, kRowsPerClaim,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   std::memcpy(static_cast<char*>(p.out) + i * row_bytes,
                               static_cast<const char*>(p.table) + p.token_ids[i] * row_bytes, row_bytes);
                 }
               });
}

}  // namespace quire::cpu
