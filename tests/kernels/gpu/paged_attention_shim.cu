// C entry points to the paged attention kernels for tests and benchmarks (attention_library.py). Null, or
// what went wrong, valid until the thread's next call.
#include <exception>
#include <string>

#include "common/dependency.cuh"
#include "common/launch.h"
#include "quire/cuda/paged_attention.h"

namespace {

template <class F>
const char* guarded(F&& f) {
  thread_local std::string error;
  try {
    f();
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}

// Copies `bytes` bytes, after the kernels in front have ended and some time has passed in which the kernel
// behind may begin.
__global__ void late_copy(unsigned char* to, const unsigned char* from, int64_t bytes, int64_t nanoseconds) {
  quire::cuda::launch_dependents();
  quire::cuda::wait_for_dependencies();
  for (int64_t i = 0; i < nanoseconds; i += 1000) __nanosleep(1000);
  for (int64_t i = threadIdx.x; i < bytes; i += blockDim.x) to[i] = from[i];
}

}  // namespace

extern "C" {

const char* quire_late_copy(void* to, const void* from, int64_t bytes, int64_t nanoseconds,
                            cudaStream_t stream) {
  return guarded([&] {
    quire::cuda::LaunchConfig config;
    config.grid = 1;
    config.block = 1024;
    config.overlaps = true;
    config.stream = stream;
    quire::cuda::launch("late_copy", late_copy, config, static_cast<unsigned char*>(to),
                        static_cast<const unsigned char*>(from), bytes, nanoseconds);
  });
}

const char* quire_attention_workspace_bytes(const quire::cuda::PagedAttentionConfig* config, size_t* bytes) {
  return guarded([&] { *bytes = quire::cuda::paged_attention_workspace_bytes(*config); });
}

const char* quire_attention_plan(const quire::cuda::PagedAttentionPlanParams* params, cudaStream_t stream) {
  return guarded([&] { quire::cuda::launch_paged_attention_plan(*params, stream); });
}

const char* quire_attention_run(const quire::cuda::PagedAttentionParams* params, cudaStream_t stream) {
  return guarded([&] { quire::cuda::launch_paged_attention(*params, stream); });
}

}  // extern "C"
