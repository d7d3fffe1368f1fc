// A copy that takes its time, for tests of what may begin while another kernel runs.
#include "common/dependency.cuh"
#include "common/launch.h"
#include "late_copy.h"

namespace quire::cuda {
namespace {

// Copies `bytes` bytes, after the kernels before it have ended and some time has passed in which the kernel
// after it may begin.
__global__ void late_copy_kernel(unsigned char* to, const unsigned char* from, int64_t bytes,
                                 int64_t nanoseconds) {
  launch_dependents();
  wait_for_dependencies();
  for (int64_t i = 0; i < nanoseconds; i += 1000) __nanosleep(1000);
  for (int64_t i = threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
}

}  // namespace

void launch_late_copy(void* to, const void* from, int64_t bytes, int64_t nanoseconds, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = 1;
  config.block = 1024;
  config.overlaps = true;
  config.stream = stream;
  launch("late_copy", late_copy_kernel, config, static_cast<unsigned char*>(to),
         static_cast<const unsigned char*>(from), bytes, nanoseconds);
}

}  // namespace quire::cuda
