// Vec: 4 float32 lanes for any machine, and the meaning of the operations that every Vec has.
//
// A function of n touches the first n lanes or elements only, n in [0, kWidth]. Comparisons give one bit per
// lane. max and min give the second argument when one is NaN, so max(bound, x) keeps a NaN in x.
#pragma once

#include "quire/cpu/dtype.h"

namespace quire::cpu::portable {

struct Vec {
  static constexpr int kWidth = 4;
  using Floats = float __attribute__((vector_size(16)));
  using Ints = int32_t __attribute__((vector_size(16)));
  Floats v;

  static Vec zero() { return {Floats{0, 0, 0, 0}}; }
  static Vec broadcast(float x) { return {Floats{x, x, x, x}}; }

  static Vec load(const float* p) { return {Floats{p[0], p[1], p[2], p[3]}}; }
  static Vec load(const float* p, int n) {  // the other lanes are 0
    Vec x = zero();
    for (int i = 0; i < n; ++i) x.v[i] = p[i];
    return x;
  }
  static Vec load(const BFloat16* p) { return {Floats{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}}; }
  static Vec load(const BFloat16* p, int n) {
    Vec x = zero();
    for (int i = 0; i < n; ++i) x.v[i] = widen(p[i]);
    return x;
  }

  // 32-bit words as they are: float32, or pairs of bfloat16, which the halves widen.
  static Vec load_words(const void* p, int n) {
    Vec x = zero();
    __builtin_memcpy(&x.v, p, static_cast<unsigned>(n) * sizeof(float));
    return x;
  }
  Vec low_halves() const { return {(Floats)((Ints)v << 16)}; }
  Vec high_halves() const { return {(Floats)((Ints)v & static_cast<int32_t>(0xffff0000))}; }

  void store(float* p) const { store(p, kWidth); }
  void store(float* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = v[i];
  }
  void store(BFloat16* p) const { store(p, kWidth); }
  void store(BFloat16* p, int n) const {  // rounds to nearest even
    for (int i = 0; i < n; ++i) p[i] = narrow(v[i]);
  }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }  // a * b + c, fused or not
  static Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  static Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
  Vec round() const {  // to the nearest integer, |v| < 2^22: adding 1.5 * 2^23 pushes the fraction out
    const Floats magic = broadcast(12582912.0f).v;
    return {(v + magic) - magic};
  }
  Vec power_of_two() const {  // 2^v for an integer v in [-127, 128]: 0 at -127, inf at 128
    return {(Floats)((__builtin_convertvector(v, Ints) + 127) << 23)};
  }
  Vec keep_first(int n, float other) const {
    Vec x = *this;
    for (int i = n; i < kWidth; ++i) x.v[i] = other;
    return x;
  }

  float sum() const { return (v[0] + v[2]) + (v[1] + v[3]); }
  float max() const {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  uint32_t is_nan() const { return bits(v != v); }
  uint32_t equals(Vec b) const { return bits(v == b.v); }

  static void transpose(Vec (&r)[kWidth]) {  // r[i][j] <-> r[j][i]
    for (int i = 0; i < kWidth; ++i) {
      for (int j = 0; j < i; ++j) {
        const float x = r[i].v[j];
        r[i].v[j] = r[j].v[i];
        r[j].v[i] = x;
      }
    }
  }

 private:
  static uint32_t bits(Ints mask) { return (mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8); }
  static float widen(BFloat16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }
  static BFloat16 narrow(float x) {
    const uint32_t b = __builtin_bit_cast(uint32_t, x);
    if (x != x) return {0x7fc0};
    return {static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16)};
  }
};

}  // namespace quire::cpu::portable
