// One launch of an attention kernel over the plan's workers.
#pragma once

#include <stdexcept>
#include <string>

#include "common/launch.h"
#include "tile_math.cuh"

namespace quire::cuda::attention {

inline void throw_on(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("paged attention: ") + cudaGetErrorString(error));
  }
}

inline void launch(void (*kernel)(KernelArgs), const KernelArgs& args, int shared_bytes,
                   cudaStream_t stream) {
  // All that the SM has: two blocks need it.
  throw_on(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  LaunchConfig config;
  config.grid = args.work.num_workers;
  config.block = kBlockThreads;
  config.shared_bytes = shared_bytes;
  config.overlaps = true;
  config.stream = stream;
  quire::cuda::launch("paged attention", kernel, config, args);
}

}  // namespace quire::cuda::attention
