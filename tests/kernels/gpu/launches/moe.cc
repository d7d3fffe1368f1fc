// Mixtures of experts: routing, sorting, both GEMMs and the sum.
#include "quire/cuda/moe.h"

#include <algorithm>
#include <numeric>

#include "launches.h"

namespace quire::launches {
namespace {

constexpr int32_t kExperts = 8, kTopK = 2, kHidden = 136, kInner = 40;

// For one token: its experts, best first, and their weights.
std::vector<std::pair<int32_t, double>> routed(const BFloat16* logits) {
  std::vector<int32_t> order(kExperts);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return to_float(logits[a]) > to_float(logits[b]); });
  std::vector<std::pair<int32_t, double>> chosen;
  double sum = 0;
  for (int32_t i = 0; i < kTopK; ++i) {
    chosen.emplace_back(order[i], std::exp(double{to_float(logits[order[i]])}));
    sum += chosen.back().second;
  }
  for (auto& [expert, weight] : chosen) weight /= sum;
  return chosen;
}

double dot(const BFloat16* a, const auto* b, int32_t size) {
  double sum = 0;
  for (int32_t i = 0; i < size; ++i) {
    if constexpr (sizeof(*b) == sizeof(double)) {
      sum += double{to_float(a[i])} * b[i];
    } else {
      sum += double{to_float(a[i])} * to_float(b[i]);
    }
  }
  return sum;
}

void experts(int32_t num_tokens, int32_t tile_rows) {
  const int32_t num_entries = num_tokens * kTopK;
  const auto host_x = random_values(num_tokens * kHidden, 1, 2);
  const auto host_logits = random_values(num_tokens * kExperts, 1, 3);
  const auto host_gate_up = random_values(kExperts * 2 * kInner * kHidden, 0.1f, 4);
  const auto host_down = random_values(kExperts * kHidden * kInner, 0.2f, 5);
  const Device<BFloat16> x(host_x), logits(host_logits), gate_up(host_gate_up), down(host_down);
  const Device<BFloat16> inner(num_entries * kInner, kPoisoned), rows(num_entries * kHidden, kPoisoned);
  const Device<BFloat16> out(host_x.size(), kPoisoned);
  const Device<int32_t> ids(num_entries, kPoisoned), entry_of_row(num_entries, kPoisoned);
  const Device<int32_t> row_of_entry(num_entries, kPoisoned), num_tiles(1, kPoisoned);
  const Device<int32_t> tiles(4 * (num_entries / tile_rows + std::min(kExperts, num_entries)), kPoisoned);
  const Device<float> weights(num_entries, kPoisoned);

  MoeRouteParams route;
  route.num_tokens = num_tokens;
  route.num_experts = kExperts;
  route.top_k = kTopK;
  route.logits = logits.data();
  route.stride_logits = kExperts;
  route.ids = ids.data();
  route.weights = weights.data();
  cuda::launch_moe_route(route, nullptr);

  MoeSortParams sort;
  sort.num_entries = num_entries;
  sort.num_experts = kExperts;
  sort.tile_rows = tile_rows;
  sort.ids = ids.data();
  sort.entry_of_row = entry_of_row.data();
  sort.row_of_entry = row_of_entry.data();
  sort.tiles = tiles.data();
  sort.num_tiles = num_tiles.data();
  cuda::launch_moe_sort(sort, nullptr);

  MoeGemmParams gemm;
  gemm.tile_rows = tile_rows;
  gemm.num_sms = 4;
  gemm.n = 2 * kInner;
  gemm.k = kHidden;
  gemm.x = x.data();
  gemm.stride_x = kHidden;
  gemm.weight = gate_up.data();
  gemm.out = inner.data();
  gemm.tiles = tiles.data();
  gemm.num_tiles = num_tiles.data();
  gemm.entry_of_row = entry_of_row.data();
  gemm.top_k = kTopK;
  gemm.is_gated = true;
  cuda::launch_moe_gemm(gemm, nullptr);
  gemm.n = kHidden;
  gemm.k = kInner;
  gemm.x = inner.data();
  gemm.stride_x = kInner;
  gemm.weight = down.data();
  gemm.out = rows.data();
  gemm.entry_of_row = nullptr;
  gemm.is_gated = false;
  cuda::launch_moe_gemm(gemm, nullptr);

  MoeCombineParams combine;
  combine.num_tokens = num_tokens;
  combine.top_k = kTopK;
  combine.hidden_size = kHidden;
  combine.x = rows.data();
  combine.row_of_entry = row_of_entry.data();
  combine.weights = weights.data();
  combine.out = out.data();
  cuda::launch_moe_combine(combine, nullptr);

  std::vector<double> wanted(host_x.size(), 0);
  for (int32_t token = 0; token < num_tokens; ++token) {
    const BFloat16* const from = &host_x[token * kHidden];
    for (const auto& [expert, weight] : routed(&host_logits[token * kExperts])) {
      std::vector<double> hidden;
      for (int32_t i = 0; i < kInner; ++i) {
        const int32_t gate_row = expert * 2 * kInner + i;
        const double gate = dot(&host_gate_up[gate_row * kHidden], from, kHidden);
        const double up = dot(&host_gate_up[(gate_row + kInner) * kHidden], from, kHidden);
        hidden.push_back(gate / (1 + std::exp(-gate)) * up);
      }
      for (int32_t i = 0; i < kHidden; ++i) {
        wanted[token * kHidden + i] +=
            weight * dot(&host_down[(expert * kHidden + i) * kInner], hidden.data(), kInner);
      }
    }
  }
  check_close(out.host(), wanted, "moe " + std::to_string(num_tokens) + " in " + std::to_string(tile_rows));
}

}  // namespace

void moe() {
  for (const int32_t num_tokens : {1, 30, 300}) experts(num_tokens, 16);
  experts(300, 64);
}

}  // namespace quire::launches
