// wgmma m64nNk16 of 16-bit types with float32 accumulators, both operands in shared memory or the first one
// in registers. sm_90a.
//
// An operand in shared memory is rows of 64 elements of k (128 bytes), the 16-byte chunks of row r XORed by r
// % 8 as the copy engine's 128-byte swizzle leaves them, groups of 8 rows 1024 bytes apart, aligned to 1024
// bytes.
//
// Accumulator of warp w (of 4), lane = 4 * g + t: acc[4 * c + i] is row 16 w + g (i = 0, 1) or 16 w + g + 8
// (i = 2, 3), column 8 c + 2 t + i % 2.
//
// First operand in registers: a[0] is row 16 w + g, columns 2 t (low half) and 2 t + 1; a[1] the same columns
// of row 16 w + g + 8; a[2] and a[3] columns 2 t + 8 and 2 t + 9 of both rows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace quire::cuda::gemm {

// address: of the operand's first row plus 2 bytes for each element of k that goes before.
__device__ inline uint64_t operand_at(uint32_t address) {
  constexpr uint64_t kGroupStride = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | kGroupStride | uint64_t{1} << 16 | (address & 0x3ffff) >> 4;
}

// acc[64 rows of a, kColumns rows of b] += a b^T over 16 elements of k.
template <class T, int kColumns>
struct Wgmma;

#define QUIRE_ACC_4(i) "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3])
#define QUIRE_ACC_8(i) QUIRE_ACC_4(i), QUIRE_ACC_4(i + 4)
#define QUIRE_ACC_12(i) QUIRE_ACC_8(i), QUIRE_ACC_4(i + 8)
#define QUIRE_ACC_16(i) QUIRE_ACC_8(i), QUIRE_ACC_8(i + 8)
#define QUIRE_ACC_24(i) QUIRE_ACC_16(i), QUIRE_ACC_8(i + 16)
#define QUIRE_ACC_32(i) QUIRE_ACC_16(i), QUIRE_ACC_16(i + 16)
#define QUIRE_REGS_4 "%0, %1, %2, %3"
#define QUIRE_REGS_8 QUIRE_REGS_4 ", %4, %5, %6, %7"
#define QUIRE_REGS_12 QUIRE_REGS_8 ", %8, %9, %10, %11"
#define QUIRE_REGS_16 QUIRE_REGS_12 ", %12, %13, %14, %15"
#define QUIRE_REGS_24 QUIRE_REGS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define QUIRE_REGS_32 QUIRE_REGS_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define QUIRE_WGMMA(type, name, columns, regs, a_reg, b_reg)                             \
  template <>                                                                            \
  struct Wgmma<type, columns> {                                                          \
    static __device__ void run(float (&acc)[regs], uint64_t a, uint64_t b) {             \
      asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." name "." name \
                   " {" QUIRE_REGS_##regs "}, " a_reg ", " b_reg ", 1, 1, 1, 0, 0;"      \
                   : QUIRE_ACC_##regs(0)                                                 \
                   : "l"(a), "l"(b));                                                    \
    }                                                                                    \
  };
#define QUIRE_WGMMAS(type, name)                \
  QUIRE_WGMMA(type, name, 8, 4, "%4", "%5")     \
  QUIRE_WGMMA(type, name, 16, 8, "%8", "%9")    \
  QUIRE_WGMMA(type, name, 24, 12, "%12", "%13") \
  QUIRE_WGMMA(type, name, 32, 16, "%16", "%17") \
  QUIRE_WGMMA(type, name, 48, 24, "%24", "%25") \
  QUIRE_WGMMA(type, name, 64, 32, "%32", "%33")

QUIRE_WGMMAS(__nv_bfloat16, "bf16")
QUIRE_WGMMAS(__half, "f16")

#undef QUIRE_ACC_4
#undef QUIRE_ACC_8
#undef QUIRE_ACC_12
#undef QUIRE_ACC_16
#undef QUIRE_ACC_24
#undef QUIRE_ACC_32
#undef QUIRE_REGS_4
#undef QUIRE_REGS_8
#undef QUIRE_REGS_12
#undef QUIRE_REGS_16
#undef QUIRE_REGS_24
#undef QUIRE_REGS_32
#undef QUIRE_WGMMA
#undef QUIRE_WGMMAS

}  // namespace quire::cuda::gemm
