#pragma once

#include <cstdint>

#include "quire/cuda/stream.h"

namespace quire::cuda {

void launch_late_copy(void* to, const void* from, int64_t bytes, int64_t nanoseconds, cudaStream_t stream);

}  // namespace quire::cuda
