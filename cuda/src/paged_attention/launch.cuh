// One launch of an attention kernel over the plan's workers.
#pragma once

#include <stdexcept>
#include <string>

#include "tile_math.cuh"

namespace quire::cuda::attention {

inline void throw_on(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("paged attention: ") + cudaGetErrorString(error));
  }
}

inline void launch(void (*kernel)(KernelArgs), const KernelArgs& args, int shared_bytes,
                   cudaStream_t stream) {
  throw_on(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  // All that the SM has: two blocks need it.
  throw_on(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100));
  kernel<<<args.work.num_workers, kBlockThreads, shared_bytes, stream>>>(args);
  throw_on(cudaGetLastError());
}

}  // namespace quire::cuda::attention
