// RoPE with the cache write, norms, activations: each works on a range of rows. Included by kernels_impl.h.

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

// How an RMSNorm is computed, beside its weight.
struct RmsNorm {
  float eps;
  float weight_offset;
  bool rounds_once;
};

// out = x * scale * weight: the second half of a norm, whose first computes the scale. out may be x.
template <class T>
inline void scale_row(const T* x, float scale, const T* weight, const RmsNorm& how, int64_t size, T* out) {
  const Vec factor = Vec::broadcast(scale), offset = Vec::broadcast(how.weight_offset);
  for_each_vec(size, [&](int64_t d, int n) {
    Vec normed = load(x + d, n) * factor;
    if (!how.rounds_once) normed = rounded_to(x, normed);
    store(normed * (load(weight + d, n) + offset), out + d, n);
  });
}

// A sum over a row, in an order that depends on its size alone.
class RowSum {
 public:
  void add(Vec x, int64_t d) { at(d) = at(d) + x; }
  void add_square(Vec x, int64_t d) { at(d) = Vec::fma(x, x, at(d)); }
  float mean(int64_t size) const {
    return ((sums_[0] + sums_[1]) + (sums_[2] + sums_[3])).sum() / static_cast<float>(size);
  }

 private:
  Vec& at(int64_t d) { return sums_[(d / Vec::kWidth) % 4]; }
  Vec sums_[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
};

// 1 / sqrt(mean of squares + eps)
inline float inverse_root(const RowSum& squares, int64_t size, float eps) {
  return 1.0f / __builtin_sqrtf(squares.mean(size) + eps);
}

// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias. out may be x, bias null.
template <class T>
inline void layer_norm_row(const T* x, float eps, const T* weight, const T* bias, int64_t size, T* out) {
  RowSum sum, squares;
  for_each_vec(size, [&](int64_t d, int n) { sum.add(load(x + d, n), d); });
  const Vec mean = Vec::broadcast(sum.mean(size));
  for_each_vec(size,
               [&](int64_t d, int n) { squares.add_square((load(x + d, n) - mean).keep_first(n, 0), d); });
  const Vec factor = Vec::broadcast(inverse_root(squares, size, eps));
  for_each_vec(size, [&](int64_t d, int n) {
    const Vec normed = (load(x + d, n) - mean) * factor;
    const Vec shift = bias == nullptr ? Vec::zero() : load(bias + d, n);
    store(Vec::fma(normed, load(weight + d, n), shift), out + d, n);
  });
}

template <class T>
inline void rms_norm_row(const T* x, const T* weight, const RmsNorm& how, int64_t size, T* out) {
  RowSum squares;
  for_each_vec(size, [&](int64_t d, int n) { squares.add_square(load(x + d, n), d); });
  scale_row(x, inverse_root(squares, size, how.eps), weight, how, size, out);
}

// The rotated head in `to`, normalised first where weight is given. to may be from.
template <class T>
inline void norm_and_rotate(const T* from, const void* weight, const RmsNorm& how, const float* cos,
                            const float* sin, int64_t head_dim, T* to) {
  if (weight != nullptr) {
    rms_norm_row(from, static_cast<const T*>(weight), how, head_dim, to);
    from = to;
  }
  rotate(from, cos, sin, head_dim / 2, to);
}

template <class T>
void rope_and_cache(const RopeAndCacheParams& p, int64_t token_begin, int64_t token_end) {
  const int64_t head_dim = p.head_dim, half = head_dim / 2, stride_slot = p.num_kv_heads * head_dim;
  const RmsNorm how{p.norm_eps, p.norm_weight_offset, p.norm_rounds_once};
  for (int64_t i = token_begin; i < token_end; ++i) {
    const float* cos = p.cos + p.positions[i] * half;
    const float* sin = p.sin + p.positions[i] * half;
    T* query = static_cast<T*>(p.qkv) + i * p.stride_token;
    for (int32_t h = 0; h < p.num_q_heads; ++h) {
      T* head = query + h * head_dim;
      norm_and_rotate(head, p.q_norm, how, cos, sin, head_dim, head);
    }

    const int64_t slot = p.slot_mapping[i];
    if (slot < 0) continue;
    const T* key = query + p.num_q_heads * head_dim;
    const int64_t place = slot / p.block_size * p.stride_block + slot % p.block_size * stride_slot;
    T* key_slot = static_cast<T*>(p.key_cache) + place;
    for (int32_t h = 0; h < p.num_kv_heads; ++h) {
      const int64_t at = h * head_dim;
      norm_and_rotate(key + at, p.k_norm, how, cos, sin, head_dim, key_slot + at);
    }
    __builtin_memcpy(static_cast<T*>(p.value_cache) + place, key + stride_slot, stride_slot * sizeof(T));
  }
}

// residual += x * scale
template <class T>
inline void add_to_residual(const T* x, float scale, int64_t size, T* residual) {
  const Vec factor = Vec::broadcast(scale);
  for_each_vec(size, [&](int64_t d, int n) {
    Vec added = load(x + d, n);
    if (scale != 1) added = rounded_to(x, added * factor);
    store(load(residual + d, n) + added, residual + d, n);
  });
}

// Rows are counted group by group: num_rows * num_groups of them.
template <class T>
void norm(const NormParams& p, int64_t row_begin, int64_t row_end) {
  const int64_t size = p.hidden_size;
  for (int64_t i = row_begin; i < row_end; ++i) {
    const int64_t row = i / p.num_groups, in_row = i % p.num_groups * size;
    const T* x = static_cast<const T*>(p.x) + row * p.stride_x + in_row;
    T* out = static_cast<T*>(p.out) + row * p.stride_out + in_row;
    const T* weight = static_cast<const T*>(p.weight) + in_row;
    if (p.residual != nullptr) {
      T* residual = static_cast<T*>(p.residual) + i * size;
      add_to_residual(x, p.residual_scale, size, residual);
      x = residual;
    }
    if (p.is_centered) {
      const T* bias = p.bias == nullptr ? nullptr : static_cast<const T*>(p.bias) + in_row;
      layer_norm_row(x, p.eps, weight, bias, size, out);
    } else {
      rms_norm_row(x, weight, {p.eps, p.weight_offset, p.rounds_once}, size, out);
    }
  }
}

inline Vec sigmoid_times(Vec x, Vec y) {  // y * sigmoid(x)
  return y / (Vec::broadcast(1.0f) + exp(Vec::zero() - x));
}

// x * Phi(x), to 1e-7 * |x|: Abramowitz and Stegun 7.1.26.
inline Vec gelu(Vec x) {
  const Vec magnitude = Vec::max(Vec::zero() - x, x), one = Vec::broadcast(1.0f);
  const Vec z = magnitude * Vec::broadcast(0.70710678f);
  const Vec t = one / Vec::fma(z, Vec::broadcast(0.3275911f), one);
  Vec q = Vec::fma(t, Vec::broadcast(1.061405429f), Vec::broadcast(-1.453152027f));
  q = Vec::fma(t, q, Vec::broadcast(1.421413741f));
  q = Vec::fma(t, q, Vec::broadcast(-0.284496736f));
  q = Vec::fma(t, q, Vec::broadcast(0.254829592f));
  q = q * t * exp(Vec::zero() - z * z);  // 1 - erf(z)
  return Vec::max(Vec::zero(), x) - Vec::broadcast(0.5f) * magnitude * q;
}

// x * (1 + tanh(u)) / 2, which is x * sigmoid(2 u), for u = sqrt(2 / pi) * (x + 0.044715 x^3).
inline Vec gelu_tanh(Vec x) {
  const Vec u = Vec::fma(x * x * x, Vec::broadcast(0.044715f), x);
  return sigmoid_times(u * Vec::broadcast(1.59576912f), x);
}

template <Activation kActivation>
inline Vec activated(Vec x) {
  switch (kActivation) {
    case Activation::kSilu:
      return sigmoid_times(x, x);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kGeluTanh:
      return gelu_tanh(x);
    case Activation::kRelu:
      return Vec::max(Vec::zero(), x);
    case Activation::kRelu2:
      x = Vec::max(Vec::zero(), x);
      return x * x;
    case Activation::kSwigluOai:
      x = Vec::min(Vec::broadcast(7.0f), x);
      return sigmoid_times(x * Vec::broadcast(1.702f), x);
  }
}

template <class T, Activation kActivation>
void activate_rows(const ActivateParams& p, int64_t row_begin, int64_t row_end) {
  const int64_t size = p.size;
  for (int64_t i = row_begin; i < row_end; ++i) {
    const T* x = static_cast<const T*>(p.x) + i * p.stride_x;
    T* out = static_cast<T*>(p.out) + i * size;
    for_each_vec(size, [&](int64_t d, int n) {
      Vec y = activated<kActivation>(load(x + d, n));
      if (p.is_gated) {
        Vec up = load(x + size + d, n);
        if (kActivation == Activation::kSwigluOai) {
          up = Vec::max(Vec::broadcast(-7.0f), Vec::min(Vec::broadcast(7.0f), up)) + Vec::broadcast(1.0f);
        }
        y = rounded_to(x, y) * up;
      }
      store(y, out + d, n);
    });
  }
}

template <class T>
void activate(const ActivateParams& p, int64_t row_begin, int64_t row_end) {
  switch (p.activation) {
    case Activation::kSilu:
      return activate_rows<T, Activation::kSilu>(p, row_begin, row_end);
    case Activation::kGelu:
      return activate_rows<T, Activation::kGelu>(p, row_begin, row_end);
    case Activation::kGeluTanh:
      return activate_rows<T, Activation::kGeluTanh>(p, row_begin, row_end);
    case Activation::kRelu:
      return activate_rows<T, Activation::kRelu>(p, row_begin, row_end);
    case Activation::kRelu2:
      return activate_rows<T, Activation::kRelu2>(p, row_begin, row_end);
    case Activation::kSwigluOai:
      return activate_rows<T, Activation::kSwigluOai>(p, row_begin, row_end);
  }
}

template <class T>
void scale_and_cap(const ScaleAndCapParams& p, int64_t row_begin, int64_t row_end) {
  const Vec scale = Vec::broadcast(p.scale);
  for (int64_t i = row_begin; i < row_end; ++i) {
    T* x = static_cast<T*>(p.x) + i * p.stride_x;
    for_each_vec(p.size, [&](int64_t d, int n) {
      Vec y = load(x + d, n) * scale;
      if (p.soft_cap > 0) y = soft_capped(y, p.soft_cap);
      store(y, x + d, n);
    });
  }
}

}  // namespace quire::cpu::QUIRE_CPU_ISA
