// What the launches of the GEMMs count with.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/launch.h"

namespace quire::cuda::gemm {

// Properties of the device that is current at the first call.
inline int num_sms() {
  static const int count = [] {
    int device = 0, sms = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return sms;
  }();
  return count;
}

inline int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

}  // namespace quire::cuda::gemm
