// The plan kernel: one block reads the batch geometry and writes the tiles and both lines.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/dependency.cuh"
#include "common/launch.h"
#include "plan.cuh"

namespace quire::cuda::attention {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kFewThreads = 320;  // for as many sequences: fewer warps to add up over
constexpr int kMinPrefillChunkUnits = 4;
constexpr int kPrefillTileUnits = 2;  // that prefill_wgmma_kernel takes at a time
constexpr int kUncut = 1 << 30;       // units per chunk: every item is one piece
// Decode reads as fast as memory gives from this share of the SMs on (docs/kernels/paged_attention.md).
constexpr float kReadingShare = 0.55f;

// SM time of a prompt's unit, in that of a unit of decode while all SMs read.
__device__ constexpr float prompt_cost(int32_t head_dim) { return head_dim < 128 ? 1.2f : 0.9f; }

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

// Sums of four values at once.
struct Sums {
  int32_t decode_tiles, decode_chunks, decode_slots, prefill_tiles;
};

__device__ Sums operator+(const Sums& a, const Sums& b) {
  return {a.decode_tiles + b.decode_tiles, a.decode_chunks + b.decode_chunks, a.decode_slots + b.decode_slots,
          a.prefill_tiles + b.prefill_tiles};
}

// The value of the lane `lanes` below; zero below lane 0.
__device__ int32_t from_below(int32_t value, int lanes) {
  const int32_t other = __shfl_up_sync(~0u, value, lanes);
  return static_cast<int>(threadIdx.x % 32) >= lanes ? other : 0;
}

__device__ Sums from_below(const Sums& x, int lanes) {
  return {from_below(x.decode_tiles, lanes), from_below(x.decode_chunks, lanes),
          from_below(x.decode_slots, lanes), from_below(x.prefill_tiles, lanes)};
}

__device__ int32_t of_lane(int32_t value, int lane) { return __shfl_sync(~0u, value, lane); }

__device__ Sums of_lane(const Sums& x, int lane) {
  return {of_lane(x.decode_tiles, lane), of_lane(x.decode_chunks, lane), of_lane(x.decode_slots, lane),
          of_lane(x.prefill_tiles, lane)};
}

__device__ int32_t num_threads() { return static_cast<int32_t>(blockDim.x); }

// Sum over the threads before this one; *total gets that over all. Every thread of the block must call
// it.
template <class T>
__device__ T scan(const T& value, T* total) {
  __shared__ T warp_sums[kMaxThreads / 32];
  static_assert(kMaxThreads == 32 * 32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T inclusive = value;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) inclusive = inclusive + from_below(inclusive, d);
  __syncthreads();  // the last scan's readers are done with warp_sums
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  T sums = lane < num_threads() / 32 ? warp_sums[lane] : T{};
#pragma unroll
  for (int d = 1; d < 32; d *= 2) sums = sums + from_below(sums, d);
  *total = of_lane(sums, 31);
  const T in_front = from_below(sums, 1);
  return of_lane(in_front, warp) + from_below(inclusive, 1);
}

__device__ int32_t num_units(int32_t num_keys, int32_t first_position, int32_t window) {
  return ceil_div(num_keys, kUnitKeys) - first_unit(first_position, window);
}

// Prompts: gives the tiles their places on the line, and in the slots those whose items are cut. Returns the
// number of slots that this takes.
__device__ int32_t place_tiles(const Work& work, int32_t num_tiles, const PagedAttentionConfig& c,
                               int32_t chunk_units, int32_t num_sms) {
  int32_t line = 0, slots = 0;
  for (int32_t begin = 0; begin < num_tiles; begin += num_threads()) {
    const int32_t i = begin + static_cast<int32_t>(threadIdx.x);
    const bool is_tile = i < num_tiles;
    int32_t num_chunks = 0;
    if (is_tile) {
      const Tile& tile = work.tiles[i];
      num_chunks = ceil_div(num_units(tile.num_keys, tile.first_position, c.window), chunk_units);
    }
    int32_t line_total, slot_total;
    const int32_t line_offset = scan(num_chunks * c.num_kv_heads, &line_total);
    const int32_t slot_offset = scan(num_chunks > 1 ? num_chunks * c.num_kv_heads : 0, &slot_total);
    if (is_tile) {
      work.tiles[i].num_chunks = num_chunks;
      work.tiles[i].line_begin = line + line_offset;
      work.tiles[i].slot_begin = slots + slot_offset;
    }
    line += line_total;
    slots += slot_total;
  }
  if (threadIdx.x == 0) {
    *work.line = Line{num_tiles, line, chunk_units, 0, 0, 0, 0, num_sms};
  }
  return slots;
}

// The tile whose stretch of the line holds `chunk`.
__device__ int32_t tile_of_chunk(const Tile* tiles, int32_t num_tiles, int32_t chunk) {
  int32_t low = 0, high = num_tiles - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (tiles[middle].line_begin <= chunk) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// How many SMs prompts get, so that they end when decode does on the others. Units: 64 keys of an item.
__device__ int32_t sms_of_prompts(const PagedAttentionConfig& c, int32_t decode_units, int32_t prompt_units) {
  if (prompt_units == 0 || decode_units == 0) return prompt_units == 0 ? 0 : c.num_sms;
  const float prompts = static_cast<float>(prompt_units) * prompt_cost(c.head_dim);
  const float decode = static_cast<float>(decode_units);
  const bool is_hidden = prompts < decode * (1 - kReadingShare);  // by SMs that decode does not miss
  const float share = prompts / (is_hidden ? decode : prompts + decode * kReadingShare);
  const auto num_sms = static_cast<int32_t>(ceilf(share * static_cast<float>(c.num_sms)));
  return max(1, min(num_sms, c.num_sms - 1));
}

struct Sequence {
  int32_t first_token, query_len, seq_len, row;
};

// The tiles of the prompts among a warp's sequences, from tile number `first` of each lane's sequence on. The
// last tile of a prompt sees most keys: it goes first, so that no worker is left with it at the end. Returns
// the units of this lane's share.
__device__ int32_t write_prompt_tiles(const Work& work, const PagedAttentionConfig& c,
                                      const Sequence& sequence, int32_t num_tiles, int32_t first,
                                      int32_t group, int32_t queries_per_tile) {
  int32_t units = 0;
  for (unsigned left = __ballot_sync(~0u, num_tiles > 0); left != 0; left &= left - 1) {
    const int lane = __ffs(static_cast<int>(left)) - 1;
    const int32_t first_token = of_lane(sequence.first_token, lane), row = of_lane(sequence.row, lane);
    const int32_t query_len = of_lane(sequence.query_len, lane), seq_len = of_lane(sequence.seq_len, lane);
    const int32_t count = of_lane(num_tiles, lane), to = of_lane(first, lane);
    for (int32_t t = static_cast<int32_t>(threadIdx.x % 32); t < count; t += 32) {
      const int32_t first_query = (count - 1 - t) * queries_per_tile;
      const int32_t num_queries = min(queries_per_tile, query_len - first_query);
      const int32_t first_position = seq_len - query_len + first_query;
      const int32_t num_keys = first_position + num_queries;
      work.tiles[to + t] =
          Tile{0, 0, 0, num_keys, first_token + first_query, num_queries * group, first_position, row};
      units += num_units(num_keys, first_position, c.window) * c.num_kv_heads;
    }
  }
  return units;
}

// Grid: 1. Block: kFewThreads or kMaxThreads. One thread takes one sequence, then one prompt's tile, then one
// decode worker.
__global__ void __launch_bounds__(kMaxThreads, 1)
    plan_kernel(PagedAttentionPlanParams p, Workspace ws, int32_t group, int32_t queries_per_tile) {
  __shared__ Tile tiles[kMaxThreads];  // the first ones of decode
  launch_dependents();
  wait_for_dependencies();
  const PagedAttentionConfig& c = p.config;
  const int32_t fold = folded_heads(c);
  const int32_t decode_group = group * fold, num_decode_heads = c.num_kv_heads / fold;
  const int32_t num_seqs = min(*p.num_seqs, c.max_num_seqs);
  for (int32_t i = threadIdx.x; i < ws.decode.num_counters; i += num_threads()) ws.decode.num_finished[i] = 0;
  for (int32_t i = threadIdx.x; i < ws.prefill.num_counters; i += num_threads())
    ws.prefill.num_finished[i] = 0;

  const bool balanced = c.split_keys == 0;
  int32_t chunk_units = balanced ? 1 : c.split_keys / kUnitKeys;
  int32_t my_prefill_units = 0;
  Sums sums{};
  for (bool fits = false; !fits;) {
    sums = {};
    my_prefill_units = 0;
    for (int32_t begin = 0; begin < num_seqs; begin += num_threads()) {
      const int32_t i = begin + static_cast<int32_t>(threadIdx.x);
      Sequence r{};
      if (i < num_seqs) {
        r.first_token = p.query_start_loc[i];
        r.query_len = p.query_start_loc[i + 1] - r.first_token;
        r.seq_len = p.seq_lens[i];
        r.row = p.block_table_rows[i];
      }
      const bool is_decode =
          has_decode(c.head_dim) && r.query_len > 0 && r.query_len * decode_group <= kDecodeRows;
      const int32_t first_position = r.seq_len - r.query_len;
      const int32_t units = is_decode ? num_units(r.seq_len, first_position, c.window) : 0;
      const int32_t num_chunks = ceil_div(units, chunk_units);
      Sums total;
      const Sums mine{is_decode ? 1 : 0, num_chunks * num_decode_heads,
                      num_chunks > 1 ? num_chunks * num_decode_heads : 0,
                      is_decode ? 0 : ceil_div(r.query_len, queries_per_tile)};
      const Sums at = sums + scan(mine, &total);
      if (is_decode) {
        const Tile tile{at.decode_chunks,           at.decode_slots, num_chunks, r.seq_len, r.first_token,
                        r.query_len * decode_group, first_position,  r.row};
        ws.decode.tiles[at.decode_tiles] = tile;
        if (at.decode_tiles < kMaxThreads) tiles[at.decode_tiles] = tile;
      }
      my_prefill_units +=
          write_prompt_tiles(ws.prefill, c, r, mine.prefill_tiles, at.prefill_tiles, group, queries_per_tile);
      sums = sums + total;
    }
    // Chunks grow until the slots suffice: always at once, unless the caller's limits were too small.
    fits = balanced || sums.decode_slots <= ws.decode.num_slots;
    if (!fits) chunk_units *= 2;
  }
  const int32_t num_decode = sums.decode_tiles;
  int32_t prefill_units = 0;
  if (sums.prefill_tiles > 0) scan(my_prefill_units, &prefill_units);
  const int32_t prefill_sms = sms_of_prompts(c, sums.decode_chunks * chunk_units * fold, prefill_units);
  const int32_t decode_sms = max(c.num_sms - prefill_sms, 1);
  const int32_t per_worker = ceil_div(sums.decode_chunks, decode_sms * decode_blocks_per_sm(c.head_dim));
  if (threadIdx.x == 0) {
    *ws.decode.line =
        Line{num_decode, sums.decode_chunks, chunk_units, per_worker, balanced ? 1 : 0, 0, 0, 0};
  }
  __syncthreads();  // the tiles are read by other threads
  const Tile* const all = num_decode <= kMaxThreads ? tiles : ws.decode.tiles;
  for (int32_t w = threadIdx.x; w < ws.decode.num_workers && num_decode > 0; w += num_threads()) {
    const int32_t tile = tile_of_chunk(all, num_decode, w * per_worker);
    ws.decode.first_tile[w] = tile;
    ws.decode.first_tiles[w] = all[tile];
  }

  if (sums.prefill_tiles == 0 || !balanced) {
    place_tiles(ws.prefill, sums.prefill_tiles, c, kUncut, prefill_sms);
    return;
  }
  const int32_t fair = ceil_div(prefill_units, prefill_sms * kPrefillTileUnits) * kPrefillTileUnits;
  int32_t prefill_chunk = max(fair, kMinPrefillChunkUnits);
  while (place_tiles(ws.prefill, sums.prefill_tiles, c, prefill_chunk, prefill_sms) > ws.prefill.num_slots) {
    prefill_chunk *= 2;
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
  require(c.head_dim >= 32 && c.head_dim <= 256 && c.head_dim % 8 == 0,
          "head_dim must be a multiple of 8 in [32, 256]", c.head_dim);
  require(c.max_num_seqs > 0, "max_num_seqs must be positive", c.max_num_seqs);
  require(c.max_num_tokens > 0, "max_num_tokens must be positive", c.max_num_tokens);
  require(c.max_seq_len > 0, "max_seq_len must be positive", c.max_seq_len);
  require(c.num_sms > 0, "num_sms must be positive", c.num_sms);
  require(c.split_keys >= 0 && c.split_keys % kUnitKeys == 0, "split_keys must be a multiple of 64",
          c.split_keys);
  require(c.window >= 0, "window must not be negative", c.window);
}

Workspace lay_out(const PagedAttentionConfig& c, void* base) {
  const int32_t group = c.num_q_heads / c.num_kv_heads;
  const int32_t rows = prefill_rows(c.head_dim);
  const int32_t queries_per_tile = rows / group;
  Workspace ws{};
  Work& d = ws.decode;
  Work& p = ws.prefill;
  d.num_workers = c.num_sms * decode_blocks_per_sm(c.head_dim);
  p.num_workers = c.num_sms;
  d.max_tiles = c.max_num_seqs;
  p.max_tiles = c.max_num_tokens / queries_per_tile + std::min(c.max_num_seqs, c.max_num_tokens);
  // Balanced prefill: items are cut when they are longer than a worker's fair share f, into at most 2 u / f
  // pieces for u units, so there are at most 2 per worker.
  d.num_slots = 2 * d.num_workers;
  p.num_slots = 2 * p.num_workers;
  if (c.split_keys > 0) {
    const int32_t chunks = ceil_div(c.max_seq_len, c.split_keys);
    d.num_slots = c.max_num_seqs * c.num_kv_heads * chunks;
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
    take(w->partial_out, num_rows * compute_dim(c.head_dim));
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
  LaunchConfig config;
  config.grid = 1;
  config.block = c.max_num_seqs <= kFewThreads ? kFewThreads : kMaxThreads;
  config.overlaps = true;
  config.stream = stream;
  launch("paged attention plan", plan_kernel, config, params, lay_out(c, params.workspace), group,
         prefill_rows(c.head_dim) / group);
}

}  // namespace quire::cuda
