// The random stream of a request: Philox4x32-10, the same numbers as quire::cpu::philox4x32.
#pragma once

#include <cstdint>

namespace quire::cuda {

// In [0, 1), with 53 random bits, from key = seed and counter = output_idx.
__device__ inline double uniform(uint64_t seed, int32_t output_idx) {
  uint32_t c0 = static_cast<uint32_t>(output_idx), c1 = 0, c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c0, b = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return ((c0 >> 5) * 67108864.0 + (c1 >> 6)) / 9007199254740992.0;
}

}  // namespace quire::cuda
