#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "quire/cpu/sampling.h"
#include "thread_pool.h"

namespace quire::cpu {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

void logprobs_of_row(const LogprobsParams& p, const KernelTable& table, int64_t row) {
  thread_local std::vector<float> logits, weights, block_sums;
  thread_local std::vector<int32_t> order;
  const int32_t num_top = std::min(p.num_logprobs[row], kMaxLogprobs);
  if (num_top <= 0) return;
  const int64_t size = p.vocab_size;
  logits.resize(size);
  weights.resize(size);
  block_sums.resize((size + kLogitsBlock - 1) / kLogitsBlock);
  const char* from = static_cast<const char*>(p.logits) + row * p.stride_logits * size_of(p.dtype);
  table.to_float[static_cast<int>(p.dtype)](from, size, logits.data());

  const LogitsSummary summary = table.summarize[0](logits.data(), size);
  const bool is_valid = !summary.has_nan && std::abs(summary.max) < kInf;
  double sum = 0;
  if (is_valid) {
    table.softmax_weights(logits.data(), size, summary.max, 1.0f, weights.data(), block_sums.data());
    for (const float block : block_sums) sum += block;
  }
  const double log_sum = std::log(sum);
  const auto logprob = [&](float logit) { return static_cast<float>(logit - summary.max - log_sum); };
  const auto ranks_before = [&](int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };

  const int32_t id = p.token_ids[row];
  const bool has_token = is_valid && id >= 0 && id < p.vocab_size;
  int32_t rank = has_token ? 1 : 0;
  if (has_token) {
    for (int32_t other = 0; other < p.vocab_size; ++other) rank += ranks_before(other, id);
  }
  p.token_logprobs[row] = has_token ? logprob(logits[id]) : std::numeric_limits<float>::quiet_NaN();
  p.token_ranks[row] = rank;

  order.clear();
  if (is_valid) {
    for (int32_t i = 0; i < p.vocab_size; ++i) {
      if (logits[i] > -kInf) order.push_back(i);
    }
  }
  const auto num_found = std::min(static_cast<std::ptrdiff_t>(order.size()), std::ptrdiff_t{num_top});
  std::partial_sort(order.begin(), order.begin() + num_found, order.end(), ranks_before);
  for (int32_t i = 0; i < num_top; ++i) {
    const int64_t place = row * kMaxLogprobs + i;
    const bool is_there = i < num_found;
    p.top_ids[place] = is_there ? order[i] : -1;
    p.top_logprobs[place] = is_there   ? logprob(logits[order[i]])
                            : is_valid ? -kInf
                                       : std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace

void logprobs(const LogprobsParams& p) {
  check_positive("vocab_size", p.vocab_size);
  table_index(p.dtype);  // refuses a type that has no kernels
  const KernelTable& table = kernels();
  parallel_for(p.num_rows > 1, p.num_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) logprobs_of_row(p, table, row);
  });
}

}  // namespace quire::cpu
