// wgmma: products of 64 rows by a warpgroup, m64nNk16, accumulated in float32. sm_90a.
//
// Fragments are those of m16n8k16 (mma.cuh) for the warp's 16 rows: c[4 * n + i] is element i of column tile
// n.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace quire::cuda::attention {

// A tile in shared memory of rows of kRowBytes (128 or 64) whose 16-byte columns are swizzled as the copy
// engine does: 8 rows follow each other, the next 8 lie group_bytes on, and the rows' next columns
// chunk_bytes on, which only an operand whose rows are not the product's inner dimension needs.
template <int kRowBytes>
__device__ inline uint64_t describe_tile(uint32_t address, uint32_t group_bytes, uint32_t chunk_bytes) {
  static_assert(kRowBytes == 128 || kRowBytes == 64);
  constexpr uint64_t kSwizzle = kRowBytes == 128 ? 1 : 2;
  return kSwizzle << 62 | static_cast<uint64_t>(group_bytes >> 4) << 32 |
         static_cast<uint64_t>(chunk_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}

// Keeps the compiler from using registers of a product on the wrong side of a wait.
template <int kCount>
__device__ inline void hold(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// Wgmma<T, N>: c += a b, with b [16, N] from shared memory.
//   multiply_shared: a and b with rows of the inner dimension (a [64, 16], b's transpose [N, 16]); is_first:
//   c
//     = a b
//   multiply_registers: a in registers, b with rows of N
template <class T, int kColumns>
struct Wgmma;

#define QUIRE_FLOATS_8(c, i)                                                                  \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), \
      "+f"(c[i + 6]), "+f"(c[i + 7])
#define QUIRE_FLOATS_32(c, i) \
  QUIRE_FLOATS_8(c, i), QUIRE_FLOATS_8(c, i + 8), QUIRE_FLOATS_8(c, i + 16), QUIRE_FLOATS_8(c, i + 24)
#define QUIRE_FLOATS_48(c, i) QUIRE_FLOATS_32(c, i), QUIRE_FLOATS_8(c, i + 32), QUIRE_FLOATS_8(c, i + 40)
#define QUIRE_FLOATS_64(c, i) QUIRE_FLOATS_32(c, i), QUIRE_FLOATS_32(c, i + 32)
#define QUIRE_NAMES_32                                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define QUIRE_NAMES_48 \
  QUIRE_NAMES_32       \
  ", "                 \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define QUIRE_NAMES_64 \
  QUIRE_NAMES_48       \
  ", "                 \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// r0 to r5: the names of the operands after the accumulators.
#define QUIRE_WGMMA(T, type, n, registers, r0, r1, r2, r3, r4)                                               \
  template <>                                                                                                \
  struct Wgmma<T, n> {                                                                                       \
    static __device__ void multiply_shared(float (&c)[registers], uint64_t a, uint64_t b, bool is_first) {   \
      asm volatile(                                                                                          \
          "{\n"                                                                                              \
          ".reg .pred adds;\n"                                                                               \
          "setp.eq.b32 adds, " r2                                                                            \
          ", 0;\n"                                                                                           \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" QUIRE_NAMES_##registers       \
          "}, " r0 ", " r1                                                                                   \
          ", adds, 1, 1, 0, 0;\n"                                                                            \
          "}\n"                                                                                              \
          : QUIRE_FLOATS_##registers(c, 0)                                                                   \
          : "l"(a), "l"(b), "r"(static_cast<int32_t>(is_first)));                                            \
    }                                                                                                        \
    static __device__ void multiply_registers(float (&c)[registers], const uint32_t (&a)[4], uint64_t b) {   \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type                           \
                   " {" QUIRE_NAMES_##registers "}, {" r0 ", " r1 ", " r2 ", " r3 "}, " r4 ", 1, 1, 1, 1;\n" \
                   : QUIRE_FLOATS_##registers(c, 0)                                                          \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                    \
    }                                                                                                        \
  };

QUIRE_WGMMA(__nv_bfloat16, "bf16", 64, 32, "%32", "%33", "%34", "%35", "%36")
QUIRE_WGMMA(__nv_bfloat16, "bf16", 96, 48, "%48", "%49", "%50", "%51", "%52")
QUIRE_WGMMA(__nv_bfloat16, "bf16", 128, 64, "%64", "%65", "%66", "%67", "%68")
QUIRE_WGMMA(__half, "f16", 64, 32, "%32", "%33", "%34", "%35", "%36")
QUIRE_WGMMA(__half, "f16", 96, 48, "%48", "%49", "%50", "%51", "%52")
QUIRE_WGMMA(__half, "f16", 128, 64, "%64", "%65", "%66", "%67", "%68")

#undef QUIRE_WGMMA
#undef QUIRE_FLOATS_8
#undef QUIRE_FLOATS_32
#undef QUIRE_FLOATS_48
#undef QUIRE_FLOATS_64
#undef QUIRE_NAMES_32
#undef QUIRE_NAMES_48
#undef QUIRE_NAMES_64

}  // namespace quire::cuda::attention
