// The rotation of queries and keys, and the write to the KV cache, on the CPU.
#pragma once

#include "quire/kernels/kv_cache.h"

namespace quire::cpu {

// Throws InvalidArgument for sizes and types that it does not support.
void rope_and_cache(const RopeAndCacheParams& params);

}  // namespace quire::cpu
