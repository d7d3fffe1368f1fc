// All kernels over a Vec, without a guard: each kernels_<isa>.cc includes its Vec, defines QUIRE_CPU_ISA as
// the namespace of that Vec, and includes this file once.
//
// These files use nothing of the standard library that is not inlined for sure: a shared inline function
// compiled for AVX-512 in one of them could be the copy that the linker keeps for all.
#include "kernel_table.h"

namespace quire::cpu::QUIRE_CPU_ISA {

template <class T>
T smaller(T a, T b) {
  return a < b ? a : b;
}

template <class T>
T larger(T a, T b) {
  return a > b ? a : b;
}

// exp(x): relative error below 2e-7; 0 below -87.7, inf above 88.4, NaN stays.
inline Vec exp(Vec x) {
  x = Vec::min(Vec::broadcast(88.73f), Vec::max(Vec::broadcast(-88.0f), x));
  const Vec n = (x * Vec::broadcast(1.44269504f)).round();
  // x - n ln 2 in two steps: the first constant has few enough bits for an exact product.
  Vec r = Vec::fma(n, Vec::broadcast(-0.693359375f), x);
  r = Vec::fma(n, Vec::broadcast(2.12194440e-4f), r);
  Vec p = Vec::broadcast(1.9875691500e-4f);
  p = Vec::fma(p, r, Vec::broadcast(1.3981999507e-3f));
  p = Vec::fma(p, r, Vec::broadcast(8.3334519073e-3f));
  p = Vec::fma(p, r, Vec::broadcast(4.1665795894e-2f));
  p = Vec::fma(p, r, Vec::broadcast(1.6666665459e-1f));
  p = Vec::fma(p, r, Vec::broadcast(5.0000001201e-1f));
  p = Vec::fma(p, r * r, r) + Vec::broadcast(1.0f);
  return p * n.power_of_two();
}

// cap * tanh(x / cap), to about 1e-7 * cap.
inline Vec soft_capped(Vec x, float cap) {
  const Vec e = exp(x * Vec::broadcast(2 / cap));
  return Vec::broadcast(cap) - Vec::broadcast(2 * cap) / (e + Vec::broadcast(1.0f));
}

// Calls body(offset, n) for the pieces of [0, size): n == kWidth but for the last. Loops on whole vectors
// stay free of masks because n is a literal there.
template <class Body>
inline __attribute__((always_inline)) void for_each_vec(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + Vec::kWidth <= size; i += Vec::kWidth) body(i, Vec::kWidth);
  if (i < size) body(i, static_cast<int>(size - i));
}

template <class T>
inline __attribute__((always_inline)) Vec load(const T* p, int n) {
  return n == Vec::kWidth ? Vec::load(p) : Vec::load(p, n);
}

template <class T>
inline __attribute__((always_inline)) void store(Vec x, T* p, int n) {
  if (n == Vec::kWidth) {
    x.store(p);
  } else {
    x.store(p, n);
  }
}

// x as it would read back from a T in memory.
inline Vec rounded_to(const float*, Vec x) { return x; }
inline Vec rounded_to(const BFloat16*, Vec x) {
  BFloat16 buffer[Vec::kWidth];
  x.store(buffer);
  return Vec::load(buffer);
}

}  // namespace quire::cpu::QUIRE_CPU_ISA

#include "attention_impl.h"
#include "layers_impl.h"
#include "logits_impl.h"

namespace quire::cpu::QUIRE_CPU_ISA {

inline KernelTable make_table(const char* name) {
  return {name,
          {attention_tile<float>, attention_tile<BFloat16>},
          {rope_and_cache<float>, rope_and_cache<BFloat16>},
          {norm<float>, norm<BFloat16>},
          {activate<float>, activate<BFloat16>},
          {scale_and_cap<float>, scale_and_cap<BFloat16>},
          {summarize<float>, summarize<BFloat16>},
          {find_first<float>, find_first<BFloat16>},
          {to_float<float>, to_float<BFloat16>},
          softmax_weights,
          block_max};
}

}  // namespace quire::cpu::QUIRE_CPU_ISA
