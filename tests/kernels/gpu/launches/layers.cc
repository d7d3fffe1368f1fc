// The row-wise layers, the cache write and the copies.
#include "quire/cuda/layers.h"

#include "launches.h"
#include "quire/cuda/kv_cache.h"

namespace quire::launches {
namespace {

// Rows of whole 16-byte pieces, and of a width that forces element by element.
void norm(int32_t num_rows, int32_t hidden_size) {
  const size_t size = size_t(num_rows) * hidden_size;
  const auto host_x = random_values(size, 1, 2), host_residual = random_values(size, 1, 3);
  const auto host_weight = random_values(hidden_size, 1, 4);
  const Device<BFloat16> x(host_x), residual(host_residual), weight(host_weight), out(size, kPoisoned);
  NormParams p;
  p.num_rows = num_rows;
  p.hidden_size = hidden_size;
  p.eps = 1e-5f;
  p.x = x.data();
  p.stride_x = hidden_size;
  p.residual = residual.data();
  p.weight = weight.data();
  p.out = out.data();
  p.stride_out = hidden_size;
  cuda::launch_norm(p, nullptr);
  std::vector<double> wanted(size);
  for (int32_t row = 0; row < num_rows; ++row) {
    double squares = 0;
    for (int32_t i = 0; i < hidden_size; ++i) {
      const size_t at = size_t(row) * hidden_size + i;
      wanted[at] = double{to_float(host_x[at])} + to_float(host_residual[at]);
      squares += wanted[at] * wanted[at];
    }
    const double factor = 1 / std::sqrt(squares / hidden_size + 1e-5);
    for (int32_t i = 0; i < hidden_size; ++i)
      wanted[size_t(row) * hidden_size + i] *= factor * to_float(host_weight[i]);
  }
  check_close(out.host(), wanted, "norm " + std::to_string(hidden_size));
  if (hidden_size % 16 != 0) return;

  const Device<uint8_t> out8(size, kPoisoned);
  const Device<float> scale(num_rows, kPoisoned);
  p.out = out8.data();
  p.out_scale = scale.data();
  cuda::launch_norm(p, nullptr);
  for (const float value : scale.host()) check(value > 0, "norm to float8: a scale above 0");
}

void activate(int32_t num_rows, int32_t intermediate_size) {
  const auto host = random_values(size_t(num_rows) * 2 * intermediate_size, 1, 2);
  const Device<BFloat16> gate_up(host), out(host.size() / 2, kPoisoned);
  ActivateParams p;
  p.num_rows = num_rows;
  p.size = intermediate_size;
  p.is_gated = true;
  p.x = gate_up.data();
  p.stride_x = 2 * intermediate_size;
  p.out = out.data();
  cuda::launch_activate(p, nullptr);
  std::vector<double> wanted;
  for (int32_t row = 0; row < num_rows; ++row) {
    for (int32_t i = 0; i < intermediate_size; ++i) {
      const size_t at = size_t(row) * 2 * intermediate_size + i;
      const double gate = to_float(host[at]);
      wanted.push_back(gate / (1 + std::exp(-gate)) * to_float(host[at + intermediate_size]));
    }
  }
  check_close(out.host(), wanted, "activate " + std::to_string(intermediate_size));
}

void embedding_and_gather() {
  constexpr int32_t kVocab = 10, kHidden = 72;
  const auto host_table = random_values(kVocab * kHidden);
  const Device<BFloat16> table(host_table), out(3 * kHidden, kPoisoned), gathered(2 * kHidden, kPoisoned);
  const Device<int32_t> ids({9, ~1, 0}), last_ids({5, 7}), indices({2, 1});
  EmbeddingParams p;
  p.num_tokens = 3;
  p.vocab_size = kVocab;
  p.hidden_size = kHidden;
  p.token_ids = ids.data();
  p.table = table.data();
  p.out = out.data();
  p.last_token_ids = last_ids.data();
  p.num_last_token_ids = 2;
  cuda::launch_embedding(p, nullptr);
  GatherRowsParams g;
  g.num_rows = 2;
  g.num_x_rows = 3;
  g.indices = indices.data();
  g.x = out.data();
  g.stride_x = g.width = kHidden;
  g.out = gathered.data();
  cuda::launch_gather_rows(g, nullptr);
  ScaleAndCapParams s;
  s.num_rows = 2;
  s.size = s.stride_x = kHidden;
  s.x = gathered.data();
  s.scale = 2;
  cuda::launch_scale_and_cap(s, nullptr);
  std::vector<double> wanted;
  for (const int32_t id : {0, 7}) {
    for (int32_t i = 0; i < kHidden; ++i) wanted.push_back(2 * to_float(host_table[id * kHidden + i]));
  }
  check(relative_error(gathered.host(), wanted) == 0, "embedding, gather_rows and scale_and_cap");
}

// At position 0 nothing turns: the caches hold what came in.
void rope_and_cache(int32_t head_dim) {
  constexpr int32_t kTokens = 3, kQHeads = 4, kKVHeads = 2, kSlots = 8, kPositions = 4;
  const int32_t width = (kQHeads + 2 * kKVHeads) * head_dim, kv_width = kKVHeads * head_dim;
  const auto host_qkv = random_values(kTokens * width);
  std::vector<float> cos(kPositions * head_dim / 2, 0), sin(kPositions * head_dim / 2, 1);
  for (int32_t i = 0; i < head_dim / 2; ++i) cos[i] = 1, sin[i] = 0;
  const Device<BFloat16> qkv(host_qkv), keys(kSlots * kv_width, kPoisoned),
      values(kSlots * kv_width, kPoisoned);
  const Device<float> cos_here(cos), sin_here(sin);
  const Device<int32_t> positions({0, 3, 0});
  const Device<int64_t> slots({5, -1, 2});
  RopeAndCacheParams p;
  p.num_tokens = kTokens;
  p.num_q_heads = kQHeads;
  p.num_kv_heads = kKVHeads;
  p.head_dim = head_dim;
  p.max_position = kPositions;
  p.qkv = qkv.data();
  p.stride_token = width;
  p.cos = cos_here.data();
  p.sin = sin_here.data();
  p.positions = positions.data();
  p.slot_mapping = slots.data();
  p.key_cache = keys.data();
  p.value_cache = values.data();
  p.num_slots = kSlots;
  p.block_size = kSlots;
  p.stride_block = kSlots * kv_width;
  cuda::launch_rope_and_cache(p, nullptr);
  const auto got_keys = keys.host(), got_values = values.host();
  bool is_same = true;
  for (const auto& [token, slot] : {std::pair{0, 5}, std::pair{2, 2}}) {
    const BFloat16* key = &host_qkv[token * width + kQHeads * head_dim];
    is_same &= std::equal(key, key + kv_width, &got_keys[slot * kv_width]);
    is_same &= std::equal(key + kv_width, key + 2 * kv_width, &got_values[slot * kv_width]);
  }
  check(is_same, "rope_and_cache " + std::to_string(head_dim));
}

void block_tables_and_copies() {
  const Device<int32_t> updates({1, 40, 7, 41, 99, 42, -1, -1}), num_updates({3}),
      tables(std::vector<int32_t>(8, 0));
  BlockTableUpdateParams p;
  p.updates = updates.data();
  p.num_updates = num_updates.data();
  p.max_updates = 4;
  p.block_tables = tables.data();
  p.num_entries = 8;
  cuda::launch_block_table_update(p, nullptr);
  check(tables.host() == std::vector<int32_t>({0, 40, 0, 0, 0, 0, 0, 41}), "block_table_update");

  constexpr int32_t kBlocks = 4, kBytes = 48;
  std::vector<uint8_t> host(kBlocks * kBytes);
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<uint8_t>(i / kBytes);
  const Device<uint8_t> cache(host);
  const Device<int32_t> copies({0, 3, 9, 1});
  CopyBlocksParams c;
  c.copies = copies.data();
  c.num_copies = 2;
  c.cache = cache.data();
  c.num_blocks = kBlocks;
  c.block_bytes = kBytes;
  cuda::launch_copy_blocks(c, nullptr);
  std::fill_n(&host[3 * kBytes], kBytes, uint8_t{0});
  check(cache.host() == host, "copy_blocks");
}

}  // namespace

void layers() {
  for (const int32_t hidden_size : {77, 512, 4096}) norm(3, hidden_size);
  for (const int32_t intermediate_size : {33, 336}) activate(3, intermediate_size);
  embedding_and_gather();
  for (const int32_t head_dim : {64, 128}) rope_and_cache(head_dim);
  block_tables_and_copies();
}

}  // namespace quire::launches
