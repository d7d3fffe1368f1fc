// One attention tile: up to 64 rows (queries x the heads that share a KV head) over the whole context of a
// request.
//
//   for 32 tokens of KV at a time:   keys -> kt [head_dim, 32]   values -> v [32, padded_dim]      (float32)
//     scores [rows, 32]       = query [rows, head_dim] x kt
//     online softmax per row: correction = exp(old max - new max), scores -> probabilities
//     acc [rows, padded_dim]  = acc * correction + probabilities x v
//
// Each sum of a row runs over head_dim, or over the tokens from position 0, in one fixed order, and tokens
// that a row does not see add exact zeros. So a row's result does not depend on the rows beside it: not on
// the batch, nor on how the prompt was cut into chunks.
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

// The same for any number of rows; columns is a multiple of 2 vectors.
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

// Where the keys or values of one KV head lie.
template <class T>
struct PagedHead {
  const T* base;
  const int32_t* block_table;
  int32_t block_size;
  int64_t stride_token;

  const T* row(int64_t position) const {
    const int64_t block_id = block_table[position / block_size];  // int64: block ids times strides pass 2^31
    return base + (block_id * block_size + position % block_size) * stride_token;
  }
};

template <class T>
void attention_tile(const PagedAttentionParams& p, const AttentionTile& tile, float* scratch) {
  constexpr int kW = Vec::kWidth;
  constexpr int kTokens = kMaxTileTokens;
  static_assert(kTokens % (2 * kW) == 0);
  constexpr float kMinusInf = -__builtin_inff();

  const int64_t head_dim = p.head_dim;
  const int64_t padded_dim = (head_dim + 2 * kW - 1) / (2 * kW) * (2 * kW);
  const int64_t rows = static_cast<int64_t>(tile.num_queries) * tile.num_heads;
  float* query = scratch;                           // [rows, head_dim], times softmax_scale
  float* acc = query + kMaxTileRows * kMaxHeadDim;  // [rows, padded_dim]
  float* kt = acc + kMaxTileRows * kMaxHeadDim;     // [head_dim, kTokens]
  float* values = kt + kTokens * kMaxHeadDim;       // [kTokens, padded_dim]
  float* scores = values + kTokens * kMaxHeadDim;   // [rows, kTokens]
  float row_max[kMaxTileRows], row_sum[kMaxTileRows], correction[kMaxTileRows];

  const int64_t first_token = static_cast<int64_t>(p.query_start_loc[tile.req_idx]) + tile.first_query;
  const int64_t query_len = p.query_start_loc[tile.req_idx + 1] - p.query_start_loc[tile.req_idx];
  const int64_t first_position = p.seq_lens[tile.req_idx] - query_len + tile.first_query;
  const int64_t context = first_position + tile.num_queries;  // tokens that the last row sees

  const int32_t group = p.num_q_heads / p.num_kv_heads;
  const int64_t head_offset = static_cast<int64_t>(tile.first_head / group) * head_dim;
  const int32_t* block_table = p.block_tables + p.block_table_rows[tile.req_idx] * p.stride_block_table;
  const int64_t stride_cache = static_cast<int64_t>(p.num_kv_heads) * head_dim;
  const PagedHead<T> keys{static_cast<const T*>(p.key_cache) + head_offset, block_table, p.block_size,
                          stride_cache};
  const PagedHead<T> vals{static_cast<const T*>(p.value_cache) + head_offset, block_table, p.block_size,
                          stride_cache};

  const Vec scale = Vec::broadcast(p.softmax_scale);
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = static_cast<const T*>(p.query) +
                    (first_token + r / tile.num_heads) * p.stride_query_token +
                    (tile.first_head + r % tile.num_heads) * head_dim;
    for_each_vec(head_dim,
                 [&](int64_t d, int n) { store(load(from + d, n) * scale, query + r * head_dim + d, n); });
    for (int64_t d = 0; d < padded_dim; d += kW) Vec::zero().store(acc + r * padded_dim + d);
    row_max[r] = kMinusInf;
    row_sum[r] = 0;
  }

  for (int64_t begin = 0; begin < context; begin += kTokens) {
    const int64_t num_tokens = smaller<int64_t>(kTokens, context - begin);
    const T* key_rows[kTokens];
    for (int64_t t = 0; t < num_tokens; ++t) {
      key_rows[t] = keys.row(begin + t);
      const T* value_row = vals.row(begin + t);
      float* to = values + t * padded_dim;
      for_each_vec(head_dim, [&](int64_t d, int n) { store(load(value_row + d, n), to + d, n); });
      for (int64_t d = head_dim; d < padded_dim; ++d) to[d] = 0;
    }
    for (int64_t t = 0; t < kTokens; t += kW) {
      for (int64_t d = 0; d < head_dim; d += kW) {
        Vec square[kW];
        const int n = static_cast<int>(smaller<int64_t>(kW, head_dim - d));
        for (int i = 0; i < kW; ++i)
          square[i] = t + i < num_tokens ? load(key_rows[t + i] + d, n) : Vec::zero();
        Vec::transpose(square);
        for (int i = 0; i < n; ++i) square[i].store(kt + (d + i) * kTokens + t);
      }
    }

    // Rows before first_row stand before this piece of the context.
    const int64_t first_row = begin > first_position ? (begin - first_position) * tile.num_heads : 0;
    float* s = scores + first_row * kTokens;
    multiply(rows - first_row, kTokens, head_dim, query + first_row * head_dim, head_dim, kt, kTokens,
             nullptr, s, kTokens);
    for (int64_t r = first_row; r < rows; ++r) {
      float* row = scores + r * kTokens;
      const int64_t visible = first_position + r / tile.num_heads + 1 - begin;  // >= 1
      Vec x[kTokens / kW];
      Vec largest = Vec::broadcast(row_max[r]);
      for (int j = 0; j < kTokens / kW; ++j) {
        const int64_t n = visible - j * kW;
        x[j] = Vec::load(row + j * kW);
        if (n < kW) x[j] = x[j].keep_first(n > 0 ? static_cast<int>(n) : 0, kMinusInf);
        largest = Vec::max(largest, x[j]);
      }
      const float new_max = largest.max();
      const Vec shift = Vec::broadcast(new_max);
      Vec sum = Vec::zero();
      for (int j = 0; j < kTokens / kW; ++j) {
        x[j] = exp(x[j] - shift);
        x[j].store(row + j * kW);
        sum = sum + x[j];
      }
      correction[r] = exp(Vec::broadcast(row_max[r] - new_max)).max();
      row_sum[r] = row_sum[r] * correction[r] + sum.sum();
      row_max[r] = new_max;
    }
    multiply(rows - first_row, padded_dim, num_tokens, s, kTokens, values, padded_dim, correction + first_row,
             acc + first_row * padded_dim, padded_dim);
  }

  for (int64_t r = 0; r < rows; ++r) {
    T* to = static_cast<T*>(p.out) + (first_token + r / tile.num_heads) * p.stride_out_token +
            (tile.first_head + r % tile.num_heads) * head_dim;
    const Vec inverse = Vec::broadcast(1.0f / row_sum[r]);
    for_each_vec(head_dim,
                 [&](int64_t d, int n) { store(load(acc + r * padded_dim + d, n) * inverse, to + d, n); });
  }
}

}  // namespace quire::cpu::QUIRE_CPU_ISA
