// RoPE with the cache write, RMSNorm, SiLU: each works on a range of rows. Included by kernels_impl.h.

namespace quire::cpu::QUIRE_CPU_ISA {

// to = from rotated by the angles whose cosines and sines are given: pairs (d, d + half). to may be from.
template <class T>
inline void rotate(const T* from, const float* cos, const float* sin, int64_t half, T* to) {
  for_each_vec(half, [&](int64_t d, int n) {
    const Vec c = load(cos + d, n), s = load(sin + d, n);
    const Vec a = load(from + d, n), b = load(from + half + d, n);
    store(a * c - b * s, to + d, n);
    store(Vec::fma(a, s, b * c), to + half + d, n);
  });
}

// out = x * scale * weight: the second half of a norm, whose first computes the scale. out may be x.
template <class T>
inline void scale_rows(const T* x, float scale, const T* weight, int64_t size, T* out) {
  const Vec factor = Vec::broadcast(scale);
  for_each_vec(size, [&](int64_t d, int n) {
    store(rounded_to(x, load(x + d, n) * factor) * load(weight + d, n), out + d, n);
  });
}

// The sum of squares over size, in an order that depends on size alone.
class SquareSum {
 public:
  void add(Vec x, int64_t d) {
    Vec& acc = squares_[(d / Vec::kWidth) % 4];
    acc = Vec::fma(x, x, acc);
  }
  // 1 / sqrt(mean + eps)
  float inverse_root(int64_t size, float eps) const {
    const float sum = ((squares_[0] + squares_[1]) + (squares_[2] + squares_[3])).sum();
    return 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + eps);
  }

 private:
  Vec squares_[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
};

// The rotated head in `to`, normalised first where weight is given. to may be from.
template <class T>
inline void norm_and_rotate(const T* from, const void* weight, float eps, const float* cos, const float* sin,
                            int64_t head_dim, T* to) {
  if (weight != nullptr) {
    SquareSum squares;
    for_each_vec(head_dim, [&](int64_t d, int n) { squares.add(load(from + d, n), d); });
    scale_rows(from, squares.inverse_root(head_dim, eps), static_cast<const T*>(weight), head_dim, to);
    from = to;
  }
  rotate(from, cos, sin, head_dim / 2, to);
}

template <class T>
void rope_and_cache(const RopeAndCacheParams& p, int64_t token_begin, int64_t token_end) {
  const int64_t head_dim = p.head_dim, half = head_dim / 2, stride_slot = p.num_kv_heads * head_dim;
  for (int64_t i = token_begin; i < token_end; ++i) {
    const float* cos = p.cos + p.positions[i] * half;
    const float* sin = p.sin + p.positions[i] * half;
    T* query = static_cast<T*>(p.qkv) + i * p.stride_token;
    for (int32_t h = 0; h < p.num_q_heads; ++h) {
      T* head = query + h * head_dim;
      norm_and_rotate(head, p.q_norm, p.norm_eps, cos, sin, head_dim, head);
    }

    const int64_t slot = p.slot_mapping[i];
    if (slot < 0) continue;
    const T* key = query + p.num_q_heads * head_dim;
    const int64_t place = slot / p.block_size * p.stride_block + slot % p.block_size * stride_slot;
    T* key_slot = static_cast<T*>(p.key_cache) + place;
    for (int32_t h = 0; h < p.num_kv_heads; ++h) {
      const int64_t at = h * head_dim;
      norm_and_rotate(key + at, p.k_norm, p.norm_eps, cos, sin, head_dim, key_slot + at);
    }
    __builtin_memcpy(static_cast<T*>(p.value_cache) + place, key + stride_slot, stride_slot * sizeof(T));
  }
}

template <class T>
void rms_norm(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  const int64_t size = p.hidden_size;
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t i = row_begin; i < row_end; ++i) {
    const T* x = static_cast<const T*>(p.x) + i * p.stride_x;
    T* out = static_cast<T*>(p.out) + i * size;
    SquareSum squares;
    if (p.residual != nullptr) {
      T* residual = static_cast<T*>(p.residual) + i * size;
      for_each_vec(size, [&](int64_t d, int n) {
        const Vec sum = rounded_to(x, load(residual + d, n) + load(x + d, n));
        store(sum, residual + d, n);
        squares.add(sum, d);
      });
      x = residual;
    } else {
      for_each_vec(size, [&](int64_t d, int n) { squares.add(load(x + d, n), d); });
    }
    scale_rows(x, squares.inverse_root(size, p.eps), weight, size, out);
  }
}

template <class T>
void silu_mul(const SiluMulParams& p, int64_t row_begin, int64_t row_end) {
  const int64_t size = p.intermediate_size;
  const Vec one = Vec::broadcast(1.0f);
  for (int64_t i = row_begin; i < row_end; ++i) {
    const T* gate = static_cast<const T*>(p.gate_up) + i * p.stride_gate_up;
    const T* up = gate + size;
    T* out = static_cast<T*>(p.out) + i * size;
    for_each_vec(size, [&](int64_t d, int n) {
      const Vec g = load(gate + d, n);
      const Vec silu = rounded_to(gate, g / (one + exp(Vec::zero() - g)));
      store(silu * load(up + d, n), out + d, n);
    });
  }
}

}  // namespace quire::cpu::QUIRE_CPU_ISA
