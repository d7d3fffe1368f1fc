// Vec: 16 float32 lanes of AVX-512 (F, BW, VL, DQ). See simd_portable.h for what each operation means.
#pragma once

#include <immintrin.h>

#include "quire/cpu/dtype.h"

namespace quire::cpu::avx512 {

struct Vec {
  static constexpr int kWidth = 16;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static Vec load(const BFloat16* p) {
    return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vec load(const BFloat16* p, int n) { return from_bf16(_mm256_maskz_loadu_epi16(first(n), p)); }

  static Vec load_words(const void* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  Vec low_halves() const { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 16))}; }
  Vec high_halves() const {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), mask))};
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }
  void store(BFloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16()); }
  void store(BFloat16* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), to_bf16()); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  Vec round() const { return {_mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  Vec power_of_two() const {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
  }
  Vec keep_first(int n, float other) const {
    return {_mm512_mask_blend_ps(first(n), _mm512_set1_ps(other), v)};
  }

  float sum() const {
    const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  float max() const {
    const __m256 x = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  uint32_t is_nan() const { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }
  uint32_t equals(Vec b) const { return _mm512_cmp_ps_mask(v, b.v, _CMP_EQ_OQ); }

  static void transpose(Vec (&r)[kWidth]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {  // pairs of rows
      t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
      t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    __m512 u[16];
    for (int i = 0; i < 16; i += 4) {  // columns 4 * lane + {0, 1, 2, 3} of rows i .. i + 3
      u[i] = unpack_low(t[i], t[i + 2]);
      u[i + 1] = unpack_high(t[i], t[i + 2]);
      u[i + 2] = unpack_low(t[i + 1], t[i + 3]);
      u[i + 3] = unpack_high(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {  // 128-bit lanes: a 4x4 transpose of blocks
      const __m512 a = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
      const __m512 b = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
      const __m512 c = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
      const __m512 d = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
      r[i].v = _mm512_shuffle_f32x4(a, b, 0x88);
      r[i + 8].v = _mm512_shuffle_f32x4(a, b, 0xdd);
      r[i + 4].v = _mm512_shuffle_f32x4(c, d, 0x88);
      r[i + 12].v = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
  }

 private:
  static __m512 unpack_low(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static __m512 unpack_high(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static Vec from_bf16(__m256i x) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
  }
  __m256i to_bf16() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_mov_epi32(rounded, static_cast<__mmask16>(is_nan()), _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
  }
};

}  // namespace quire::cpu::avx512
