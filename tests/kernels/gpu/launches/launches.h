// Every kernel a few times at small sizes, without Python: what compute-sanitizer and profilers get through
// in seconds. Results are compared with plain loops on the host, so that a run means something; the tests
// beside this folder judge them in earnest.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace quire::launches {

inline void require(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

enum Poison { kPoisoned };  // 0xff bytes: NaN in every float type, -1 in every integer

// Memory of its own, exactly as large as asked for, so that memcheck sees each byte past its end.
template <class T>
class Device {
 public:
  explicit Device(const std::vector<T>& host) : Device(host.size(), kPoisoned) {
    require(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  Device(size_t size, Poison) : size_(size) {
    void* memory = nullptr;
    require(cudaMalloc(&memory, size_ * sizeof(T)));
    data_ = static_cast<T*>(memory);
    poison();
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { cudaFree(data_); }

  void poison() const { require(cudaMemset(data_, 0xff, size_ * sizeof(T))); }
  T* data() const { return data_; }
  std::vector<T> host() const {
    require(cudaDeviceSynchronize());
    std::vector<T> values(size_);
    require(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t size_;
  T* data_ = nullptr;
};

using BFloat16 = uint16_t;

inline float to_float(BFloat16 bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

inline BFloat16 to_bfloat16(float value) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<BFloat16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline std::vector<BFloat16> random_values(size_t size, float scale = 1, uint32_t seed = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<BFloat16> values(size);
  for (BFloat16& value : values) value = to_bfloat16(normal(generator));
  return values;
}

// |got - wanted| / |wanted| of all elements; NaN where one of them is.
inline double relative_error(const std::vector<BFloat16>& got, const std::vector<double>& wanted) {
  if (got.size() != wanted.size()) throw std::logic_error("sizes differ");
  double difference = 0, norm = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double d = double{to_float(got[i])} - wanted[i];
    difference += d * d, norm += wanted[i] * wanted[i];
  }
  return std::sqrt(difference / norm);
}

// Rounding to bfloat16 alone is 0.17 %.
constexpr double kTolerance = 0.006;

// Prints a line; throws unless it holds.
inline void check(bool holds, const std::string& what) {
  std::printf("%s %s\n", holds ? "ok  " : "FAIL", what.c_str());
  if (!holds) throw std::runtime_error(what);
}

inline void check_close(const std::vector<BFloat16>& got, const std::vector<double>& wanted,
                        const std::string& what) {
  const double error = relative_error(got, wanted);
  check(error < kTolerance, what + ": error " + std::to_string(error));
}

void gemms();
void attention();
void layers();
void moe();
void sampling();

}  // namespace quire::launches
