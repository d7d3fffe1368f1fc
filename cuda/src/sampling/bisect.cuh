// top_k and top_p of any size, for flat rows and large top_k: bisects the order-preserving keys of the
// logits.
//
// Each of up to 3 cuts takes one pass over the row and one exchange in the cluster for every bit of a key (16
// bits for bfloat16, 19 for float16, 32 for float32). Slower than bins.cuh, and without a limit.
#pragma once

#include "row.cuh"

namespace quire::cuda::sampling {

// Low bits of a key that the type does not use: 0 in keys of positive logits, 1 in those of negative ones.
template <class T>
inline constexpr int kUnusedBits = 0;
template <>
inline constexpr int kUnusedBits<__nv_bfloat16> = 16;
template <>
inline constexpr int kUnusedBits<__half> = 13;

// For a row: a bias or a penalty makes a float32 of a logit.
template <class T, bool kAdjusted>
__device__ int unused_bits(const Row<T, kAdjusted>& row) {
  return row.has_counts() || row.has_biases() ? 0 : kUnusedBits<T>;
}

// The first tokens of the rank order: those with larger keys, and the first num_ties with this key.
struct Cut {
  uint32_t key;
  uint64_t num_ties;
  uint64_t count;
  uint64_t mass;
};

// Cluster. Number and mass of the tokens whose key is at least this, -inf excepted.
template <bool kWithMass = true, class T, bool kAdjusted>
__device__ ClusterSum measure(Row<T, kAdjusted>& row, uint32_t key) {
  uint64_t count = 0, mass = 0;
  row.for_each_vector([&](const auto& values, int) {
#pragma unroll
    for (const float logit : values) {
      const uint32_t k = key_of(logit);
      if (k < key || k <= kMinusInfKey) continue;
      ++count;
      if (kWithMass) mass += row.mass_of(logit);
    }
  });
  count = block_reduce(count, Sum(), row.shared.scratch);
  if (kWithMass) mass = block_reduce(mass, Sum(), row.shared.scratch);
  return row.sum_over_cluster(count, mass);
}

// Cluster. The shortest prefix of the rank order whose count (by = 0) or mass (by = 1) exceeds limit, which
// is less than that of the row.
template <class T, bool kAdjusted>
__device__ Cut cut(Row<T, kAdjusted>& row, int by, uint64_t limit) {
  const int num_unused = unused_bits(row);
  uint32_t key = 0;
  for (int bit = 31; bit >= num_unused; --bit) {
    const uint32_t larger = key | (1u << bit);
    const ClusterSum sum = by == 0 ? measure<false>(row, larger) : measure(row, larger);
    if (sum.total[by] > limit) key = larger;
  }
  if ((key & 0x80000000u) == 0) key |= (1u << num_unused) - 1;
  const ClusterSum above = measure(row, key + 1);
  const uint64_t mass = row.mass_of(logit_of(key));
  Cut result;
  result.key = key;
  result.num_ties = (limit - above.total[by]) / (by == 0 ? 1 : mass) + 1;
  result.count = above.total[0] + result.num_ties;
  result.mass = above.total[1] + result.num_ties * mass;
  return result;
}

// Cluster. Draws with top_k or top_p, to out.
template <class T, bool kAdjusted>
__device__ void draw_by_bisection(Row<T, kAdjusted>& row, const Plan& plan, int top_k, float top_p, double u,
                                  const Result& out) {
  const ClusterSum all = measure(row, 0);
  Cut kept{0, 0, all.total[0], all.total[1]};
  if (top_k > 0 && static_cast<uint64_t>(top_k) < kept.count) kept = cut(row, 0, top_k - 1);
  if (top_p < 1) kept = cut(row, 1, mass_limit(top_p, kept.mass));
  const uint64_t target = draw_target(u, kept.mass);

  // A wide nucleus is walked in the CPU's order: the bins before the last one by id, the last one by rank.
  if (top_k == 0 && kept.count > kFirstGuess && target < plan.mass_before) {
    const auto mass = [&](float logit) {
      return row.bin_of(logit) < plan.last_bin ? row.mass_of(logit) : uint64_t{0};
    };
    const ClusterSum sums = row.sum_ids(mass);
    row.write_crossing_id(sums, target, mass, out);
    return;
  }
  const Cut drawn = cut(row, 1, target);
  const auto is_tie = [&](float logit) { return static_cast<uint64_t>(key_of(logit) == drawn.key); };
  const ClusterSum ties = row.sum_ids(is_tie);
  row.write_crossing_id(ties, drawn.num_ties - 1, is_tie, out);
}

}  // namespace quire::cuda::sampling
