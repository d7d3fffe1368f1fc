#include "quire/cpu/layers.h"

#include <cstring>

#include "check.h"
#include "thread_pool.h"

namespace quire::cpu {
namespace {

// Elements below which waking another thread costs more than it saves, and rows that one claim takes.
constexpr int64_t kLargeWork = 1 << 18;
constexpr int64_t kRowsPerClaim = 16;

// Runs a kernel of the table over all rows of `size` elements.
template <class Params>
void run_rows(void (*const (&kernel)[2])(const Params&, int64_t, int64_t), const Params& p, int64_t num_rows,
              int64_t size) {
  const auto run = kernel[table_index(p.dtype)];
  parallel_for(num_rows * size >= kLargeWork, num_rows, kRowsPerClaim,
               [&](int64_t begin, int64_t end) { run(p, begin, end); });
}

}  // namespace

void norm(const NormParams& p) {
  check_positive("hidden_size", p.hidden_size);
  check_positive("num_groups", p.num_groups);
  check_default("out_scale", p.out_scale == nullptr);
  if (!p.rounds_once) check_default("weight_offset", p.weight_offset == 0);
  run_rows(kernels().norm, p, int64_t{p.num_rows} * p.num_groups, p.hidden_size);
}

void activate(const ActivateParams& p) {
  check_positive("size", p.size);
  check_default("out_scale", p.out_scale == nullptr);
  run_rows(kernels().activate, p, p.num_rows, p.size * (p.is_gated ? 2 : 1));
}

void scale_and_cap(const ScaleAndCapParams& p) {
  check_positive("size", p.size);
  check_at_least_0("soft_cap", p.soft_cap);
  run_rows(kernels().scale_and_cap, p, p.num_rows, p.size);
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
  const auto scale = kernels().scale_and_cap[table_index(p.dtype)];
  const ScaleAndCapParams scaled = {p.dtype, p.num_tokens, p.hidden_size, p.out, p.hidden_size, p.scale, 0};
  parallel_for(p.num_tokens * row_bytes >= 1 << 20, p.num_tokens, kRowsPerClaim,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   std::memcpy(static_cast<char*>(p.out) + i * row_bytes,
                               static_cast<const char*>(p.table) + p.token_ids[i] * row_bytes, row_bytes);
                 }
                 if (p.scale != 1) scale(scaled, begin, end);
               });
}

}  // namespace quire::cpu
