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

template <class T>
void rope_and_cache(const RopeAndCacheParams& p, int64_t token_begin, int64_t token_end) {
  const int64_t head_dim = p.head_dim, half = head_dim / 2, stride_slot = p.num_kv_heads * head_dim;
  for (int64_t i = token_begin; i < token_end; ++i) {
    const float* cos = p.cos + p.positions[i] * half;
    const float* sin = p.sin + p.positions[i] * half;
    T* query = static_cast<T*>(p.query) + i * p.stride_token;
    for (int32_t h = 0; h < p.num_q_heads; ++h)
      rotate(query + h * head_dim, cos, sin, half, query + h * head_dim);

    const int64_t slot = p.slot_mapping[i];
    if (slot < 0) continue;
    const T* key = static_cast<const T*>(p.key) + i * p.stride_token;
    T* key_slot = static_cast<T*>(p.key_cache) + slot * stride_slot;
    for (int32_t h = 0; h < p.num_kv_heads; ++h)
      rotate(key + h * head_dim, cos, sin, half, key_slot + h * head_dim);
    __builtin_memcpy(static_cast<T*>(p.value_cache) + slot * stride_slot,
                     static_cast<const T*>(p.value) + i * p.stride_token, stride_slot * sizeof(T));
  }
}

template <class T>
void rms_norm(const RmsNormParams& p, int64_t row_begin, int64_t row_end) {
  constexpr int kW = Vec::kWidth;
  const int64_t size = p.hidden_size;
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t i = row_begin; i < row_end; ++i) {
    const T* x = static_cast<const T*>(p.x) + i * p.stride_x;
    T* out = static_cast<T*>(p.out) + i * size;
    Vec squares[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    if (p.residual != nullptr) {
      T* residual = static_cast<T*>(p.residual) + i * size;
      for_each_vec(size, [&](int64_t d, int n) {
        const Vec sum = rounded_to(x, load(residual + d, n) + load(x + d, n));
        store(sum, residual + d, n);
        Vec& acc = squares[(d / kW) % 4];
        acc = Vec::fma(sum, sum, acc);
      });
      x = residual;
    } else {
      for_each_vec(size, [&](int64_t d, int n) {
        const Vec v = load(x + d, n);
        Vec& acc = squares[(d / kW) % 4];
        acc = Vec::fma(v, v, acc);
      });
    }
    const float mean =
        ((squares[0] + squares[1]) + (squares[2] + squares[3])).sum() / static_cast<float>(size);
    const Vec scale = Vec::broadcast(1.0f / __builtin_sqrtf(mean + p.eps));
    for_each_vec(size, [&](int64_t d, int n) {
      store(rounded_to(x, load(x + d, n) * scale) * load(weight + d, n), out + d, n);
    });
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
