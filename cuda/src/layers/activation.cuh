// The activations of MLPs.
#pragma once

#include "common/vec.cuh"
#include "quire/kernels/layers.h"

namespace quire::cuda {

// y * sigmoid(x). The quick exponential and division are good to 1e-5, far below the rounding of a 16-bit
// type.
template <class T>
__device__ float sigmoid_times(float x, float y) {
  if constexpr (std::is_same_v<T, float>) return y / (1.0f + expf(-x));
  return __fdividef(y, 1.0f + __expf(-x));
}

template <class T>
__device__ float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return sigmoid_times<T>(x, x);
    case Activation::kGelu:
      return x * normcdff(x);
    case Activation::kGeluTanh:  // x * (1 + tanh(u)) / 2 is x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715
                                 // x^3)
      return sigmoid_times<T>(1.59576912f * fmaf(0.044715f * x * x, x, x), x);
    case Activation::kRelu:
      return x < 0 ? 0 : x;
    case Activation::kRelu2:
      return x < 0 ? 0 : x * x;
    case Activation::kSwigluOai:
      x = x > 7 ? 7 : x;
      return sigmoid_times<T>(1.702f * x, x);
  }
  return 0;
}

// The switch is outside of the loop: each case is straight code.
template <class T, int kSize>
__device__ Vec<float, kSize> activated(Activation activation, const Vec<T, kSize>& x) {
  Vec<float, kSize> out = unpacked(x);
  const auto each = [&](auto function) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] = function(out[i]);
  };
  switch (activation) {
#define QUIRE_CASE(name)                                                     \
  case Activation::name:                                                     \
    each([](float value) { return activated<T>(Activation::name, value); }); \
    break
    QUIRE_CASE(kSilu);
    QUIRE_CASE(kGelu);
    QUIRE_CASE(kGeluTanh);
    QUIRE_CASE(kRelu);
    QUIRE_CASE(kRelu2);
    QUIRE_CASE(kSwigluOai);
#undef QUIRE_CASE
  }
  return out;
}

template <class T, int kSize>
__device__ Vec<T, kSize> gated(Activation activation, const Vec<T, kSize>& gate, const Vec<T, kSize>& up) {
  Vec<float, kSize> out = rounded<T>(activated(activation, gate));
  Vec<float, kSize> factors = unpacked(up);
  if (activation == Activation::kSwigluOai) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float factor = factors[i];
      factors[i] = (factor > 7 ? 7 : factor < -7 ? -7 : factor) + 1;
    }
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) out[i] *= factors[i];
  return packed<T>(out);
}

}  // namespace quire::cuda
