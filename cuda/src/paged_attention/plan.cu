// The plan kernel: one block reads the batch geometry and writes the tiles and both lines.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "plan.cuh"

namespace quire::cuda::attention {
namespace {

constexpr int kThreads = 1024;
constexpr int kMinPrefillChunkUnits = 4;
constexpr int kPrefillTileUnits = 2;  // that prefill_wgmma_kernel takes at a time
constexpr int kUncut = 1 << 30;       // units per chunk: every item is one piece

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

// Exclusive prefix sum of one value per thread; *total gets the sum. Every thread of the block must call it.
__device__ int32_t scan(int32_t value, int32_t* total) {
  __shared__ int32_t warp_sums[kThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t inclusive = value;
  for (int d = 1; d < 32; d *= 2) {
    const int32_t other = __shfl_up_sync(~0u, inclusive, d);
    if (lane >= d) inclusive += other;
  }
  __syncthreads();  // the last scan's readers are done with warp_sums
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    int32_t sum = warp_sums[lane];
    for (int d = 1; d < 32; d *= 2) {
      const int32_t other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    warp_sums[lane] = sum;
  }
  __syncthreads();
  *total = warp_sums[kThreads / 32 - 1];
  return inclusive - value + (warp == 0 ? 0 : warp_sums[warp - 1]);
}

// Gives the tiles their places on the line, and in the slots those whose items are cut. Returns the number of
// slots that this takes.
__device__ int32_t place_tiles(const Work& work, int32_t num_tiles, int32_t num_kv_heads,
                               int32_t chunk_units) {
  int32_t line = 0, slots = 0;
  for (int32_t begin = 0; begin < num_tiles; begin += kThreads) {
    const int32_t i = begin + static_cast<int32_t>(threadIdx.x);
    const bool is_tile = i < num_tiles;
    const int32_t num_chunks =
        is_tile ? ceil_div(ceil_div(work.tiles[i].num_keys, kUnitKeys), chunk_units) : 0;
    int32_t line_total, slot_total;
    const int32_t line_offset = scan(num_chunks * num_kv_heads, &line_total);
    const int32_t slot_offset = scan(num_chunks > 1 ? num_chunks * num_kv_heads : 0, &slot_total);
    if (is_tile) {
      work.tiles[i].num_chunks = num_chunks;
      work.tiles[i].line_begin = line + line_offset;
      work.tiles[i].slot_begin = slots + slot_offset;
    }
    line += line_total;
    slots += slot_total;
  }
  if (threadIdx.x == 0) {
    *work.line = Line{num_tiles, line, chunk_units, ceil_div(line, work.num_workers), 0, 0, 0};
  }
  __syncthreads();  // the tiles and the line are read by other threads
  return slots;
}

// Chunks grow until the slots suffice: always at once, unless the caller's limits were too small.
__device__ void place_tiles_in_slots(const Work& work, int32_t num_tiles, int32_t num_kv_heads,
                                     int32_t chunk_units) {
  while (place_tiles(work, num_tiles, num_kv_heads, chunk_units) > work.num_slots) chunk_units *= 2;
}

__device__ int32_t tile_of_chunk(const Work& work, int32_t num_tiles, int32_t chunk) {
  int32_t low = 0, high = num_tiles - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (work.tiles[middle].line_begin <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Grid: 1. Block: kThreads. One thread takes one request, then one tile, then one worker.
__global__ void __launch_bounds__(kThreads, 1)
    plan_kernel(PagedAttentionPlanParams p, Workspace ws, int32_t group, int32_t queries_per_tile) {
  const int32_t num_reqs = min(*p.num_reqs, p.config.max_num_reqs);
  const int32_t num_kv_heads = p.config.num_kv_heads;

  int32_t num_decode = 0, num_prefill = 0;
  int32_t my_prefill_units = 0;
  for (int32_t begin = 0; begin < num_reqs; begin += kThreads) {
    const int32_t i = begin + static_cast<int32_t>(threadIdx.x);
    int32_t first_token = 0, query_len = 0, seq_len = 0, row = 0;
    if (i < num_reqs) {
      first_token = p.query_start_loc[i];
      query_len = p.query_start_loc[i + 1] - first_token;
      seq_len = p.seq_lens[i];
      row = p.block_table_rows[i];
    }
    const bool is_decode = query_len > 0 && query_len * group <= kDecodeRows;
    const int32_t num_tiles = is_decode ? 0 : ceil_div(query_len, queries_per_tile);
    int32_t decode_total, prefill_total;
    const int32_t decode_idx = num_decode + scan(is_decode ? 1 : 0, &decode_total);
    const int32_t prefill_idx = num_prefill + scan(num_tiles, &prefill_total);
    num_decode += decode_total;
    num_prefill += prefill_total;
    if (is_decode) {
      ws.decode.tiles[decode_idx] =
          Tile{0, 0, 0, seq_len, first_token, query_len * group, seq_len - query_len, row};
    }
    // The last tile of a prompt sees most keys: it goes first, so that no worker is left with it at the end.
    for (int32_t t = 0; t < num_tiles; ++t) {
      const int32_t first_query = (num_tiles - 1 - t) * queries_per_tile;
      const int32_t num_queries = min(queries_per_tile, query_len - first_query);
      const int32_t first_position = seq_len - query_len + first_query;
      const int32_t num_keys = first_position + num_queries;
      ws.prefill.tiles[prefill_idx + t] =
          Tile{0, 0, 0, num_keys, first_token + first_query, num_queries * group, first_position, row};
      my_prefill_units += ceil_div(num_keys, kUnitKeys) * num_kv_heads;
    }
  }
  for (int32_t i = threadIdx.x; i < ws.decode.num_counters; i += kThreads) ws.decode.num_finished[i] = 0;
  for (int32_t i = threadIdx.x; i < ws.prefill.num_counters; i += kThreads) ws.prefill.num_finished[i] = 0;
  int32_t prefill_units;
  scan(my_prefill_units, &prefill_units);  // its barriers also publish the tiles within the block

  if (p.config.split_keys > 0) {
    place_tiles_in_slots(ws.decode, num_decode, num_kv_heads, p.config.split_keys / kUnitKeys);
    place_tiles(ws.prefill, num_prefill, num_kv_heads, kUncut);
  } else {
    place_tiles(ws.decode, num_decode, num_kv_heads, 1);
    const int32_t fair =
        ceil_div(prefill_units, ws.prefill.num_workers * kPrefillTileUnits) * kPrefillTileUnits;
    place_tiles_in_slots(ws.prefill, num_prefill, num_kv_heads, max(fair, kMinPrefillChunkUnits));
  }
  for (int32_t w = threadIdx.x; w < min(ws.prefill.num_workers, ws.prefill.line->num_chunks); w += kThreads) {
    ws.prefill.first_tiles[w] = ws.prefill.tiles[tile_of_chunk(ws.prefill, num_prefill, w)];
  }
  const int32_t per_worker = ws.decode.line->per_worker;
  if (threadIdx.x == 0) ws.decode.line->balanced = p.config.split_keys == 0;
  if (num_decode == 0) return;
  for (int32_t w = threadIdx.x; w < ws.decode.num_workers; w += kThreads) {
    const int32_t tile = tile_of_chunk(ws.decode, num_decode, w * per_worker);
    ws.decode.first_tile[w] = tile;
    ws.decode.first_tiles[w] = ws.decode.tiles[tile];
  }
}

void require(bool condition, const char* what, int64_t got) {
  if (!condition) {
    throw std::invalid_argument(std::string("paged attention: ") + what + ", got " + std::to_string(got));
  }
}

}  // namespace

void check(const PagedAttentionConfig& c) {
  require(c.num_kv_heads > 0, "num_kv_heads must be positive", c.num_kv_heads);
  require(c.num_q_heads > 0 && c.num_q_heads % c.num_kv_heads == 0,
          "num_q_heads must be a multiple of num_kv_heads", c.num_q_heads);
  require(c.num_q_heads / c.num_kv_heads <= 64, "at most 64 query heads may share a KV head",
          c.num_q_heads / c.num_kv_heads);
  require(c.head_dim == 64 || c.head_dim == 96 || c.head_dim == 128 || c.head_dim == 256,
          "head_dim must be 64, 96, 128 or 256", c.head_dim);
  require(c.max_num_reqs > 0, "max_num_reqs must be positive", c.max_num_reqs);
  require(c.max_num_tokens > 0, "max_num_tokens must be positive", c.max_num_tokens);
  require(c.max_seq_len > 0, "max_seq_len must be positive", c.max_seq_len);
  require(c.num_sms > 0, "num_sms must be positive", c.num_sms);
  require(c.split_keys >= 0 && c.split_keys % kUnitKeys == 0, "split_keys must be a multiple of 64",
          c.split_keys);
}

Workspace lay_out(const PagedAttentionConfig& c, void* base) {
  const int32_t group = c.num_q_heads / c.num_kv_heads;
  const int32_t rows = prefill_rows(c.head_dim);
  const int32_t queries_per_tile = rows / group;
  Workspace ws{};
  Work& d = ws.decode;
  Work& p = ws.prefill;
  d.num_workers = c.num_sms * blocks_per_sm(c.head_dim);
  p.num_workers = c.num_sms;
  d.max_tiles = c.max_num_reqs;
  p.max_tiles = c.max_num_tokens / queries_per_tile + std::min(c.max_num_reqs, c.max_num_tokens);
  // Balanced prefill: items are cut when they are longer than a worker's fair share f, into at most 2 u / f
  // pieces for u units, so there are at most 2 per worker.
  d.num_slots = 2 * d.num_workers;
  p.num_slots = 2 * p.num_workers;
  if (c.split_keys > 0) {
    const int32_t chunks = ceil_div(c.max_seq_len, c.split_keys);
    d.num_slots = c.max_num_reqs * c.num_kv_heads * chunks;
    p.num_slots = 0;
  }
  d.num_counters = std::max(d.num_slots, d.num_workers);
  p.num_counters = p.num_slots;

  auto* const bytes = static_cast<char*>(base);
  size_t offset = 0;
  const auto take = [&](auto*& pointer, size_t count) {
    using T = std::remove_reference_t<decltype(*pointer)>;
    pointer = reinterpret_cast<T*>(bytes + offset);
    offset = (offset + count * sizeof(T) + 255) / 256 * 256;
  };
  for (Work* w : {&d, &p}) {
    const size_t num_rows = static_cast<size_t>(w->num_slots) * (w == &d ? kDecodeRows : rows);
    take(w->line, 1);
    take(w->tiles, w->max_tiles);
    take(w->first_tile, w->num_workers);
    take(w->first_tiles, w->num_workers);
    take(w->num_finished, w->num_counters);
    take(w->partial_state, num_rows * 2);
    take(w->partial_out, num_rows * c.head_dim);
  }
  ws.bytes = offset;
  return ws;
}

}  // namespace quire::cuda::attention

namespace quire::cuda {

size_t paged_attention_workspace_bytes(const PagedAttentionConfig& config) {
  attention::check(config);
  return attention::lay_out(config, nullptr).bytes;
}

void launch_paged_attention_plan(const PagedAttentionPlanParams& params, cudaStream_t stream) {
  using namespace attention;
  const PagedAttentionConfig& c = params.config;
  check(c);
  const int32_t group = c.num_q_heads / c.num_kv_heads;
  plan_kernel<<<1, kThreads, 0, stream>>>(params, lay_out(c, params.workspace), group,
                                          prefill_rows(c.head_dim) / group);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    throw std::runtime_error(std::string("paged attention plan: ") + cudaGetErrorString(error));
  }
}

}  // namespace quire::cuda
