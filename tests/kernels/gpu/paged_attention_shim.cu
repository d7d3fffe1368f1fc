// C entry points to the paged attention kernels for tests and benchmarks (attention_library.py). Null, or
// what went wrong, valid until the thread's next call.
#include <exception>
#include <string>

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

}  // namespace

extern "C" {

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
