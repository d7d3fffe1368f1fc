// Stores and copies that complete on barriers. sm_90.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/barrier.cuh"
#include "common/vec.cuh"

namespace quire::cuda::gemm {

// The address of the same place in the shared memory of another block of the cluster.
__device__ inline uint32_t address_in_block(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// Stores in the shared memory of a block of the cluster and counts the bytes on a barrier of that block:
// whoever waits for the barrier sees the values.
__device__ inline void store_in_cluster(uint32_t to, float4 values, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          to),
      "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w), "r"(barrier)
      : "memory");
}

__device__ inline float4 load_float4(uint32_t from) {
  float4 values;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(values.x), "=f"(values.y), "=f"(values.z), "=f"(values.w)
               : "r"(from)
               : "memory");
  return values;
}

__device__ inline void store_float4(uint32_t to, float4 values) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(values.x), "f"(values.y),
               "f"(values.z), "f"(values.w)
               : "memory");
}

__device__ inline float2 load_float2(uint32_t from) {
  float2 values;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(values.x), "=f"(values.y) : "r"(from) : "memory");
  return values;
}

__device__ inline void store_float(uint32_t to, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(value) : "memory");
}

__device__ inline Vec<uint32_t, 4> load_words(uint32_t from) {
  Vec<uint32_t, 4> words;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(from)
               : "memory");
  return words;
}

__device__ inline void store_int(uint32_t to, int32_t value) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}

__device__ inline int32_t load_int(uint32_t from) {
  int32_t value;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}

// From global to shared memory, without waiting for it.
__device__ inline void copy_float(uint32_t to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

// Arrives at the barrier, as one of the arrivals that it was initialized with, when this thread's copies so
// far are there.
__device__ inline void arrive_after_copies(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ inline uint32_t load_short(uint32_t from) {
  uint16_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
  return value;
}

// What L2 shall do with the lines of a copy.
enum class CachePolicy : uint64_t {
  kNormal = 0x1000000000000000,
  kEvictFirst = 0x12F0000000000000,
  kEvictLast = 0x14F0000000000000
};

// The box at element `column` of row `row`; what lies outside of the tensor becomes 0.
__device__ inline void copy_box(uint32_t to, const CUtensorMap* map, int32_t column, int32_t row,
                                uint32_t barrier, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(static_cast<uint64_t>(policy))
      : "memory");
}

// A copy of a tensor of four dimensions.
__device__ inline void copy_box(uint32_t to, const CUtensorMap* map, int4 at, uint32_t barrier,
                                CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
      "l"(map), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "r"(barrier), "l"(static_cast<uint64_t>(policy))
      : "memory");
}

}  // namespace quire::cuda::gemm
