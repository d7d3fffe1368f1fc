// One attention tile: up to 64 rows (queries x the heads that share a KV head) over the whole context of a
// sequence.
//
//   for 32 tokens at a time, for each KV head of the tile:
//     keys -> kt [head_dim, 32], values -> v [32, padded_dim]      (float32)
//     scores [rows, 32]       = query [rows, head_dim] x kt
//     online softmax per row: correction = exp(old max - new max), scores -> probabilities
//     acc [rows, padded_dim]  = acc * correction + probabilities x v
//
// Each sum of a row runs over head_dim, or over the 32 tokens at a time that it sees any of, in one fixed
// order, and tokens that a row does not see add exact zeros. So a row's result does not depend on the rows
// beside it: not on the batch, nor on how the prompt was cut into chunks.
//
// Included by kernels_impl.h.

namespace quire::cpu::QUIRE_CPU_ISA {

// c[R][NV vectors] = c * correction + a[R][depth] x b[depth][NV vectors]; a null correction starts from zero.
template <int R, int NV>
inline void multiply_block(int64_t depth, const float* a, int64_t stride_a, const float* b, int64_t stride_b,
                           const float* correction, float* c, int64_t stride_c) {
  Vec acc[R][NV];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) {
      acc[r][j] = correction == nullptr
                      ? Vec::zero()
                      : Vec::load(c + r * stride_c + j * Vec::kWidth) * Vec::broadcast(correction[r]);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[NV];
    for (int j = 0; j < NV; ++j) row[j] = Vec::load(b + k * stride_b + j * Vec::kWidth);
    for (int r = 0; r < R; ++r) {
      const Vec x = Vec::broadcast(a[r * stride_a + k]);
      for (int j = 0; j < NV; ++j) acc[r][j] = Vec::fma(x, row[j], acc[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < NV; ++j) acc[r][j].store(c + r * stride_c + j * Vec::kWidth);
  }
}

// For any number of rows; columns is a multiple of 2 vectors.
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t stride_a,
                     const float* b, int64_t stride_b, const float* correction, float* c, int64_t stride_c) {
  constexpr int kW = Vec::kWidth;
  constexpr int kRows = kW == 16 ? 8 : 4;  // accumulators that fit the registers: 32 of 512 bits, or 16
  int64_t r = 0;
  const auto block = [&]<int R, int NV>(int64_t column) {
    multiply_block<R, NV>(depth, a + r * stride_a, stride_a, b + column, stride_b,
                          correction == nullptr ? nullptr : correction + r, c + r * stride_c + column,
                          stride_c);
  };
  for (; r + kRows <= rows; r += kRows) {
    for (int64_t j = 0; j < columns; j += 2 * kW) block.template operator()<kRows, 2>(j);
  }
  if constexpr (kRows > 4) {
    for (; r + 4 <= rows; r += 4) {
      for (int64_t j = 0; j < columns; j += 2 * kW) block.template operator()<4, 2>(j);
    }
  }
  // With few rows, wider blocks keep enough sums in flight.
  while (r < rows) {
    const bool two = r + 2 <= rows;
    int64_t j = 0;
    for (; j + 4 * kW <= columns; j += 4 * kW) {
      two ? block.template operator()<2, 4>(j) : block.template operator()<1, 4>(j);
    }
    for (; j < columns; j += 2 * kW) {
      two ? block.template operator()<2, 2>(j) : block.template operator()<1, 2>(j);
    }
    r += two ? 2 : 1;
  }
}

// One pass over the tokens [begin, begin + num_tokens) of the context, for the rows of one KV head: rows
// [rows] are num_queries x num_heads, query by query, the first query at first_position. A query sees itself
// and window - 1 tokens before it.
struct AttentionRows {
  int64_t rows, num_heads, first_position, window, head_dim, padded_dim;
  float soft_cap;      // 0: none
  const float* query;  // [rows, head_dim], times softmax_scale
  float* acc;          // [rows, padded_dim]
  float* row_max;      // [rows]
  float* row_sum;      // [rows]
};

inline void attend(const AttentionRows& a, int64_t begin, int64_t num_tokens, const float* kt,
                   const float* values, float* scores) {
  constexpr int kW = Vec::kWidth;
  constexpr int kTokens = kMaxTileTokens;
  constexpr int kVecs = kTokens / kW;
  float correction[kMaxTileRows];
  // Rows before first_row stand before this piece of the context, rows from end_row on see only later ones.
  const int64_t first_row = begin > a.first_position ? (begin - a.first_position) * a.num_heads : 0;
  const int64_t end_row =
      smaller(a.rows, (begin + num_tokens - 1 + a.window - a.first_position) * a.num_heads);
  const int64_t rows = end_row - first_row;
  multiply(rows, kTokens, a.head_dim, a.query + first_row * a.head_dim, a.head_dim, kt, kTokens, nullptr,
           scores, kTokens);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * kTokens;
    float& max = a.row_max[first_row + r];
    float& sum = a.row_sum[first_row + r];
    const int64_t visible = a.first_position + (first_row + r) / a.num_heads + 1 - begin;  // >= 1
    const int64_t hidden = visible - a.window;  // < num_tokens: the first ones, already out of the window
    const Vec minus_inf = Vec::broadcast(-__builtin_inff());
    Vec x[kVecs];
    Vec largest = Vec::broadcast(max);
    for (int j = 0; j < kVecs; ++j) {
      const int64_t n = visible - j * kW;
      x[j] = Vec::load(row + j * kW);
      if (a.soft_cap > 0) x[j] = soft_capped(x[j], a.soft_cap);
      if (n < kW) x[j] = x[j].keep_first(n > 0 ? static_cast<int>(n) : 0, -__builtin_inff());
      const int64_t m = hidden - j * kW;
      if (m > 0) {  // -inf for the first m, 0 for the others
        x[j] = x[j] + minus_inf.keep_first(static_cast<int>(smaller<int64_t>(m, kW)), 0);
      }
      largest = Vec::max(largest, x[j]);
    }
    const float new_max = largest.max();
    const Vec shift = Vec::broadcast(new_max);
    Vec total = Vec::zero();
    for (int j = 0; j < kVecs; ++j) {
      x[j] = exp(x[j] - shift);
      x[j].store(row + j * kW);
      total = total + x[j];
    }
    correction[r] = exp(Vec::broadcast(max - new_max)).max();
    sum = sum * correction[r] + total.sum();
    max = new_max;
  }
  multiply(rows, a.padded_dim, num_tokens, scores, kTokens, values, a.padded_dim, correction,
           a.acc + first_row * a.padded_dim, a.padded_dim);
}

// What a transposed row of 32-bit words holds: one dimension of float32, or a pair of dimensions of bfloat16,
// which halves the work of transposing.
inline void store_dims(const float*, Vec words, float* kt) { words.store(kt); }
inline void store_dims(const BFloat16*, Vec words, float* kt) {
  words.low_halves().store(kt);
  words.high_halves().store(kt + kMaxTileTokens);
}

// kt [head_dim, kTokens] from rows [num_tokens] of head_dim; the tokens behind num_tokens become 0.
template <class T>
inline void pack_transposed(const T* base, const int64_t* rows, int64_t num_tokens, int64_t head_dim,
                            float* kt) {
  constexpr int kW = Vec::kWidth;
  constexpr int64_t kDims = sizeof(float) / sizeof(T);  // per word
  for (int64_t t = 0; t < kMaxTileTokens; t += kW) {
    for (int64_t d = 0; d < head_dim; d += kW * kDims) {
      Vec square[kW];
      const int n = static_cast<int>(smaller<int64_t>(kW, (head_dim - d) / kDims));
      if (n == kW && t + kW <= num_tokens) {  // constant bounds: the square stays in registers
        for (int i = 0; i < kW; ++i) square[i] = Vec::load_words(base + rows[t + i] + d, kW);
        Vec::transpose(square);
        for (int i = 0; i < kW; ++i) store_dims(base, square[i], kt + (d + i * kDims) * kMaxTileTokens + t);
      } else {
        for (int i = 0; i < kW; ++i) {
          square[i] = t + i < num_tokens ? Vec::load_words(base + rows[t + i] + d, n) : Vec::zero();
        }
        Vec::transpose(square);
        for (int i = 0; i < n; ++i) store_dims(base, square[i], kt + (d + i * kDims) * kMaxTileTokens + t);
      }
    }
  }
}

// values [num_tokens, padded_dim] from rows of head_dim; the padding becomes 0.
template <class T>
inline void pack(const T* base, const int64_t* rows, int64_t num_tokens, int64_t head_dim, int64_t padded_dim,
                 float* values) {
  for (int64_t t = 0; t < num_tokens; ++t) {
    const T* from = base + rows[t];
    float* to = values + t * padded_dim;
    for_each_vec(head_dim, [&](int64_t d, int n) { store(load(from + d, n), to + d, n); });
    for (int64_t d = head_dim; d < padded_dim; ++d) to[d] = 0;
  }
}

// Asks for rows [begin, end) of `width` elements, so that they are in the second-level cache when they are
// packed.
template <class T>
inline void prefetch(const T* base, const int64_t* rows, int64_t begin, int64_t end, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t d = 0; d < width; d += kLine) __builtin_prefetch(base + rows[t] + d, 0, 2);
  }
}

template <class T>
void attention_tile(const PagedAttentionParams& p, const AttentionTile& tile, float* scratch) {
  constexpr int kW = Vec::kWidth;
  constexpr int kTokens = kMaxTileTokens;
  static_assert(kTokens % (2 * kW) == 0);

  const int64_t head_dim = p.config.head_dim;
  const int64_t padded_dim = (head_dim + 2 * kW - 1) / (2 * kW) * (2 * kW);
  const int64_t group = p.config.num_q_heads / p.config.num_kv_heads;
  const int64_t rows_per_kv_head = static_cast<int64_t>(tile.num_queries) * tile.num_heads;
  const int64_t rows = rows_per_kv_head * tile.num_kv_heads;
  float* query = scratch;                           // [rows, head_dim], times softmax_scale
  float* acc = query + kMaxTileRows * kMaxHeadDim;  // [rows, padded_dim]
  float* kt = acc + kMaxTileRows * kMaxHeadDim;     // [head_dim, kTokens]
  float* values = kt + kTokens * kMaxHeadDim;       // [kTokens, padded_dim]
  float* scores = values + kTokens * kMaxHeadDim;   // [rows_per_kv_head, kTokens]
  float row_max[kMaxTileRows], row_sum[kMaxTileRows];

  const int64_t first_token = static_cast<int64_t>(p.query_start_loc[tile.seq_idx]) + tile.first_query;
  const int64_t query_len = p.query_start_loc[tile.seq_idx + 1] - p.query_start_loc[tile.seq_idx];
  const int64_t first_position = p.seq_lens[tile.seq_idx] - query_len + tile.first_query;
  const int64_t context = first_position + tile.num_queries;  // the end of what the last row sees
  const int64_t window = p.config.window > 0 ? p.config.window : context;
  // Where the first row's window begins, and the piece that this token is in. Tokens before it have no place
  // in the cache any more.
  const int64_t first_seen = larger<int64_t>(0, first_position + 1 - window);
  const int64_t first_begin = first_seen / kTokens * kTokens;

  // Row r belongs to KV head r / rows_per_kv_head of the tile, and there to a query and a head.
  const auto head_of = [&](int64_t r) {
    return tile.first_head + r / rows_per_kv_head * group + r % rows_per_kv_head % tile.num_heads;
  };
  const auto row_offset = [&](int64_t r, int64_t stride_token) {
    return (first_token + r % rows_per_kv_head / tile.num_heads) * stride_token + head_of(r) * head_dim;
  };
  const Vec scale = Vec::broadcast(p.softmax_scale);
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = static_cast<const T*>(p.query) + row_offset(r, p.stride_query_token);
    for_each_vec(head_dim,
                 [&](int64_t d, int n) { store(load(from + d, n) * scale, query + r * head_dim + d, n); });
    for (int64_t d = 0; d < padded_dim; d += kW) Vec::zero().store(acc + r * padded_dim + d);
    // A sink is a score more, without a value.
    row_max[r] = p.sinks != nullptr ? p.sinks[head_of(r)] : -__builtin_inff();
    row_sum[r] = p.sinks != nullptr ? 1.0f : 0.0f;
  }

  const int32_t* block_table = p.block_tables + p.block_table_rows[tile.seq_idx] * p.stride_block_table;
  const int64_t stride_cache = p.config.num_kv_heads * head_dim;
  const T* keys = static_cast<const T*>(p.key_cache) + tile.first_head / group * head_dim;
  const T* vals = static_cast<const T*>(p.value_cache) + tile.first_head / group * head_dim;
  int64_t buffers[2][kTokens];  // elements from the start of the cache to the tokens of this piece and of the
                                // next
  const auto locate = [&](int64_t begin, int64_t num_tokens, int64_t* cache_rows) {
    for (int64_t t = 0; t < num_tokens; ++t) {
      const int64_t position = larger(begin + t, first_seen);  // no row sees those before: any value will do
      const int64_t block_id = block_table[position / p.block_size];  // int64: its product passes 2^31
      cache_rows[t] = block_id * p.stride_block + position % p.block_size * stride_cache;
    }
  };
  int64_t num_tokens = smaller<int64_t>(kTokens, context - first_begin);
  locate(first_begin, num_tokens, buffers[0]);
  for (int64_t begin = first_begin, piece = 0; begin < context; begin += kTokens, ++piece) {
    const int64_t* cache_rows = buffers[piece % 2];
    int64_t* next_rows = buffers[(piece + 1) % 2];
    const int64_t next_num_tokens = smaller<int64_t>(kTokens, context - begin - num_tokens);
    locate(begin + kTokens, next_num_tokens, next_rows);
    // The KV heads of a token lie side by side. A head's rows lie apart, and reading them is slow; so while
    // one head after the other is computed, the next piece of the context comes in whole rows, a share of it
    // with each head.
    for (int64_t g = 0; g < tile.num_kv_heads; ++g) {
      const int64_t share_begin = next_num_tokens * g / tile.num_kv_heads;
      const int64_t share_end = next_num_tokens * (g + 1) / tile.num_kv_heads;
      prefetch(keys, next_rows, share_begin, share_end, tile.num_kv_heads * head_dim);
      pack_transposed(keys + g * head_dim, cache_rows, num_tokens, head_dim, kt);
      prefetch(vals, next_rows, share_begin, share_end, tile.num_kv_heads * head_dim);
      pack(vals + g * head_dim, cache_rows, num_tokens, head_dim, padded_dim, values);
      const int64_t r = g * rows_per_kv_head;
      attend({rows_per_kv_head, tile.num_heads, first_position, window, head_dim, padded_dim, p.soft_cap,
              query + r * head_dim, acc + r * padded_dim, row_max + r, row_sum + r},
             begin, num_tokens, kt, values, scores);
    }
    num_tokens = next_num_tokens;
  }

  for (int64_t r = 0; r < rows; ++r) {
    T* to = static_cast<T*>(p.out) + row_offset(r, p.stride_out_token);
    const Vec inverse = Vec::broadcast(1.0f / row_sum[r]);
    for_each_vec(head_dim,
                 [&](int64_t d, int n) { store(load(acc + r * padded_dim + d, n) * inverse, to + d, n); });
  }
}

}  // namespace quire::cpu::QUIRE_CPU_ISA
