// The sampler and what goes with it on the CPU. Each throws InvalidArgument for sizes that it does not
// support.
#pragma once

#include <array>
#include <cstdint>

#include "quire/kernels/sampling.h"

namespace quire::cpu {

void sample(const SampleParams& params);
void token_counts(const TokenCountsParams& params);
void logprobs(const LogprobsParams& params);

// The 4 words of Philox4x32-10 for counter {counter, 0} and key = seed.
std::array<uint32_t, 4> philox4x32(uint64_t seed, uint64_t counter);

}  // namespace quire::cpu
