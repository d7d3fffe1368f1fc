// What the GEMM for many rows needs beyond copy_engine.cuh and wgmma.cuh: copies to several blocks of a
// cluster, copies out of shared memory, and a wider product.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

#include "common/barrier.cuh"

namespace quire::cuda::gemm::wide {

// The box at element `column` of row `row`, to the same place in each block of the cluster whose bit is set
// in `blocks`; its bytes count at the barrier at the same place in each of them.
__device__ inline void copy_box_to_blocks(uint32_t to, const CUtensorMap* map, int32_t column, int32_t row,
                                          uint32_t barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
      : "memory");
}

__device__ inline void copy_box_here(uint32_t to, const CUtensorMap* map, int32_t column, int32_t row,
                                     uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// The part of the box that lies in the tensor.
__device__ inline void store_box(const CUtensorMap* map, int32_t column, int32_t row, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
               "r"(column), "r"(row), "r"(from)
               : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until this thread's stores have read their shared memory, or have ended.
__device__ inline void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ inline void wait_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// barrier: of any block of the cluster. Orders what this block has read, not what it has written.
__device__ inline void release_in_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Every thread of the cluster. Orders nothing but initialized barriers after fence_barrier_init().
__device__ inline void sync_cluster() {
  arrive_at_cluster();
  wait_for_cluster();
}

// Four matrices of 8 x 8 elements of 16 bits: lane l gives the address of row l % 8 of matrix l / 8, and of
// matrix i holds elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 in values[i].
__device__ inline void store_matrices(uint32_t to, const uint32_t (&values)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(values[0]),
               "r"(values[1]), "r"(values[2]), "r"(values[3])
               : "memory");
}

#define QUIRE_FLOATS_8(c, i)                                                                  \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define QUIRE_FLOATS_32_FROM(c, i) \
  QUIRE_FLOATS_8(c, i), QUIRE_FLOATS_8(c, i + 8), QUIRE_FLOATS_8(c, i + 16), QUIRE_FLOATS_8(c, i + 24)
#define QUIRE_FLOATS_32(c) QUIRE_FLOATS_32_FROM(c, 0)
#define QUIRE_FLOATS_16(c) QUIRE_FLOATS_8(c, 0), QUIRE_FLOATS_8(c, 8)
#define QUIRE_FLOATS_48(c) QUIRE_FLOATS_32(c), QUIRE_FLOATS_8(c, 32), QUIRE_FLOATS_8(c, 40)
#define QUIRE_FLOATS_64(c) QUIRE_FLOATS_48(c), QUIRE_FLOATS_8(c, 48), QUIRE_FLOATS_8(c, 56)
#define QUIRE_FLOATS_112(c) \
  QUIRE_FLOATS_64(c), QUIRE_FLOATS_32_FROM(c, 64), QUIRE_FLOATS_8(c, 96), QUIRE_FLOATS_8(c, 104)
#define QUIRE_FLOATS_128(c) QUIRE_FLOATS_112(c), QUIRE_FLOATS_8(c, 112), QUIRE_FLOATS_8(c, 120)
#define QUIRE_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define QUIRE_NAMES_32 \
  QUIRE_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define QUIRE_NAMES_48 \
  QUIRE_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define QUIRE_NAMES_64 \
  QUIRE_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define QUIRE_NAMES_112                                                              \
  QUIRE_NAMES_64                                                                     \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define QUIRE_NAMES_128 \
  QUIRE_NAMES_112       \
  ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// r0 to r2: the names of the operands after the accumulators; __VA_ARGS__: the first operand. flags: signs of
// the operands, and for types that have a choice which axis of those in shared memory is contiguous.
#define QUIRE_WGMMA(n, types, flags, registers, r0, r1, r2, ...)                                 \
  asm volatile(                                                                                  \
      "{\n"                                                                                      \
      ".reg .pred adds;\n"                                                                       \
      "setp.ne.b32 adds, " r2                                                                    \
      ", 0;\n"                                                                                   \
      "wgmma.mma_async.sync.aligned.m64n" #n types " {" QUIRE_NAMES_##registers "}, " r0 ", " r1 \
                                                                                ", adds, " flags \
                                                                                ";\n"            \
                                                                                "}\n"            \
      : QUIRE_FLOATS_##registers(acc)                                                            \
      : __VA_ARGS__, "l"(b), "r"(static_cast<int32_t>(adds)))

#define QUIRE_WGMMA_OF_SIZE(types, flags)                                                          \
  if constexpr (kSize == 16) QUIRE_WGMMA(32, types, flags, 16, "%16", "%17", "%18", "l"(a));       \
  if constexpr (kSize == 32) QUIRE_WGMMA(64, types, flags, 32, "%32", "%33", "%34", "l"(a));       \
  if constexpr (kSize == 48) QUIRE_WGMMA(96, types, flags, 48, "%48", "%49", "%50", "l"(a));       \
  if constexpr (kSize == 64) QUIRE_WGMMA(128, types, flags, 64, "%64", "%65", "%66", "l"(a));      \
  if constexpr (kSize == 112) QUIRE_WGMMA(224, types, flags, 112, "%112", "%113", "%114", "l"(a)); \
  if constexpr (kSize == 128) QUIRE_WGMMA(256, types, flags, 128, "%128", "%129", "%130", "l"(a));

#define QUIRE_FOUR_REGISTERS(a) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
#define QUIRE_WGMMA_OF_REGISTERS(types, flags)                                                        \
  if constexpr (kSize == 32)                                                                          \
    QUIRE_WGMMA(64, types, flags, 32, "{%32, %33, %34, %35}", "%36", "%37", QUIRE_FOUR_REGISTERS(a)); \
  if constexpr (kSize == 48)                                                                          \
    QUIRE_WGMMA(96, types, flags, 48, "{%48, %49, %50, %51}", "%52", "%53", QUIRE_FOUR_REGISTERS(a)); \
  if constexpr (kSize == 64)                                                                          \
    QUIRE_WGMMA(128, types, flags, 64, "{%64, %65, %66, %67}", "%68", "%69", QUIRE_FOUR_REGISTERS(a));

// acc[64 rows of a, 2 kSize rows of b] = a b^T over 32 bytes of k, plus acc when `adds`. Operands and
// accumulators lie as wgmma.cuh says; Element: bfloat16, half or float8 e4m3.
template <class Element, int kSize>
__device__ inline void multiply(float (&acc)[kSize], uint64_t a, uint64_t b, bool adds) {
  static_assert(kSize == 16 || kSize == 32 || kSize == 48 || kSize == 64 || kSize == 112 || kSize == 128);
  if constexpr (std::is_same_v<Element, __nv_fp8_e4m3>) {
    QUIRE_WGMMA_OF_SIZE("k32.f32.e4m3.e4m3", "1, 1")
  } else if constexpr (std::is_same_v<Element, __half>) {
    QUIRE_WGMMA_OF_SIZE("k16.f32.f16.f16", "1, 1, 0, 0")
  } else {
    QUIRE_WGMMA_OF_SIZE("k16.f32.bf16.bf16", "1, 1, 0, 0")
  }
}

// The same with a in registers, which must not change before the product is done.
template <class Element, int kSize>
__device__ inline void multiply(float (&acc)[kSize], const uint32_t (&a)[4], uint64_t b, bool adds) {
  static_assert(kSize == 32 || kSize == 48 || kSize == 64);
  if constexpr (std::is_same_v<Element, __half>) {
    QUIRE_WGMMA_OF_REGISTERS("k16.f32.f16.f16", "1, 1, 0")
  } else {
    QUIRE_WGMMA_OF_REGISTERS("k16.f32.bf16.bf16", "1, 1, 0")
  }
}

#undef QUIRE_FOUR_REGISTERS
#undef QUIRE_WGMMA_OF_REGISTERS
#undef QUIRE_WGMMA_OF_SIZE
#undef QUIRE_WGMMA
#undef QUIRE_NAMES_16
#undef QUIRE_NAMES_32
#undef QUIRE_NAMES_48
#undef QUIRE_NAMES_64
#undef QUIRE_NAMES_112
#undef QUIRE_NAMES_128
#undef QUIRE_FLOATS_16
#undef QUIRE_FLOATS_32_FROM
#undef QUIRE_FLOATS_48
#undef QUIRE_FLOATS_64
#undef QUIRE_FLOATS_112
#undef QUIRE_FLOATS_128
#undef QUIRE_FLOATS_8
#undef QUIRE_FLOATS_32

}  // namespace quire::cuda::gemm::wide
