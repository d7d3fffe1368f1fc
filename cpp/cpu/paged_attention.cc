// Cuts the batch into tiles (queries and heads of one sequence) and spreads them over threads. How it is cut
// changes no result: a row is computed the same way in every tile.
#include "quire/cpu/paged_attention.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "quire/cpu/runtime.h"
#include "thread_pool.h"

namespace quire::cpu {
namespace {

// Multiply-adds below which waking another thread costs more than it saves.
constexpr int64_t kLargeWork = 1 << 20;

float* scratch_of_this_thread() {
  struct Free {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float[], Free> scratch(new (std::align_val_t{64}) float[kAttentionScratch]);
  return scratch.get();
}

}  // namespace

void paged_attention(const PagedAttentionParams& p) {
  check_heads(p.config.num_q_heads, p.config.num_kv_heads, p.config.head_dim);
  check_positive("block_size", p.block_size);
  check_at_least_0("window", p.config.window);
  check_default("kv_dtype", p.kv_dtype == KVDType::kSame);
  check_at_least_0("soft_cap", p.soft_cap);

  const int32_t group = p.config.num_q_heads / p.config.num_kv_heads;
  const int32_t heads_per_tile = std::min(group, kMaxTileRows);
  const int32_t queries_per_tile = kMaxTileRows / heads_per_tile;
  // Few queries, as in decode, leave room for several KV heads; but every thread should find work.
  const int32_t wanted_pieces = std::max(1, 2 * num_threads() / std::max(1, p.num_seqs));
  const int32_t max_kv_heads = std::max(1, p.config.num_kv_heads / wanted_pieces);

  thread_local std::vector<AttentionTile> tiles;
  tiles.clear();
  int64_t work = 0;
  for (int32_t i = 0; i < p.num_seqs; ++i) {
    const int32_t query_len = p.query_start_loc[i + 1] - p.query_start_loc[i];
    const int32_t window = p.config.window > 0 ? p.config.window : p.seq_lens[i];
    work += static_cast<int64_t>(query_len) * std::min(window, p.seq_lens[i]);
    // The last queries see most: they go first, so that no thread is left with a long tile at the end.
    const int32_t num_pieces = (query_len + queries_per_tile - 1) / queries_per_tile;
    for (int32_t piece = num_pieces - 1; piece >= 0; --piece) {
      const int32_t first_query = piece * queries_per_tile;
      const int32_t num_queries = std::min(queries_per_tile, query_len - first_query);
      const int32_t kv_heads_per_tile =
          heads_per_tile == group ? std::min(max_kv_heads, kMaxTileRows / (num_queries * group)) : 1;
      for (int32_t kv_head = 0; kv_head < p.config.num_kv_heads; kv_head += kv_heads_per_tile) {
        for (int32_t h = 0; h < group; h += heads_per_tile) {
          tiles.push_back({i, first_query, num_queries,
                           std::min(kv_heads_per_tile, p.config.num_kv_heads - kv_head), kv_head * group + h,
                           std::min(heads_per_tile, group - h)});
        }
      }
    }
  }
  work *= 2 * static_cast<int64_t>(p.config.num_q_heads) * p.config.head_dim;

  const auto run_tile = kernels().attention_tile[table_index(p.dtype)];
  const AttentionTile* first_tile = tiles.data();
  parallel_for(work >= kLargeWork, static_cast<int64_t>(tiles.size()), 1, [&](int64_t begin, int64_t end) {
    float* scratch = scratch_of_this_thread();
    for (int64_t i = begin; i < end; ++i) run_tile(p, first_tile[i], scratch);
  });
}

}  // namespace quire::cpu
