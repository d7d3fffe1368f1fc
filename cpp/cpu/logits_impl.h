// Passes over a row of logits, for sample.cc. Included by kernels_impl.h.

namespace quire::cpu::QUIRE_CPU_ISA {

template <class T>
LogitsSummary summarize(const void* logits, int64_t size) {
  const T* x = static_cast<const T*>(logits);
  Vec largest[2] = {Vec::broadcast(-__builtin_inff()), Vec::broadcast(-__builtin_inff())};
  uint32_t nan = 0;
  int64_t i = 0;
  for (; i + 2 * Vec::kWidth <= size; i += 2 * Vec::kWidth) {
    const Vec a = Vec::load(x + i), b = Vec::load(x + i + Vec::kWidth);
    nan |= a.is_nan() | b.is_nan();
    largest[0] = Vec::max(largest[0], a);
    largest[1] = Vec::max(largest[1], b);
  }
  for (; i < size; i += Vec::kWidth) {
    const int n = static_cast<int>(smaller<int64_t>(Vec::kWidth, size - i));
    const Vec a = Vec::load(x + i, n).keep_first(n, -__builtin_inff());
    nan |= a.is_nan();
    largest[0] = Vec::max(largest[0], a);
  }
  return {Vec::max(largest[0], largest[1]).max(), nan != 0};
}

template <class T>
int64_t find_first(const void* logits, int64_t size, float value) {
  const T* x = static_cast<const T*>(logits);
  const Vec wanted = Vec::broadcast(value);
  for (int64_t i = 0; i < size; i += Vec::kWidth) {
    const int n = static_cast<int>(smaller<int64_t>(Vec::kWidth, size - i));
    const uint32_t hits = load(x + i, n).equals(wanted) & ((1u << n) - 1u);
    if (hits != 0) return i + __builtin_ctz(hits);
  }
  return size;
}

template <class T>
void to_float(const void* logits, int64_t size, float* out) {
  const T* x = static_cast<const T*>(logits);
  for_each_vec(size, [&](int64_t i, int n) { store(load(x + i, n), out + i, n); });
}

inline void softmax_weights(const float* logits, int64_t size, float max, float inverse_temperature,
                            float* weights, float* block_sums) {
  const Vec shift = Vec::broadcast(max), scale = Vec::broadcast(inverse_temperature);
  for (int64_t begin = 0; begin < size; begin += kLogitsBlock) {
    Vec sum = Vec::zero();
    for_each_vec(smaller<int64_t>(kLogitsBlock, size - begin), [&](int64_t i, int n) {
      const Vec w = exp((load(logits + begin + i, n) - shift) * scale);
      store(w, weights + begin + i, n);
      sum = sum + w.keep_first(n, 0.0f);
    });
    if (block_sums != nullptr) block_sums[begin / kLogitsBlock] = sum.sum();
  }
}

inline void block_max(const float* logits, int64_t size, float* maxima) {
  for (int64_t begin = 0; begin < size; begin += kLogitsBlock) {
    Vec largest = Vec::broadcast(-__builtin_inff());
    for_each_vec(smaller<int64_t>(kLogitsBlock, size - begin), [&](int64_t i, int n) {
      largest = Vec::max(largest, load(logits + begin + i, n).keep_first(n, -__builtin_inff()));
    });
    maxima[begin / kLogitsBlock] = largest.max();
  }
}

}  // namespace quire::cpu::QUIRE_CPU_ISA
