// The kernels for machines with AVX512; compiled with those flags (cmake/cpu_isa.cmake).
#include "kernel_table.h"

#if defined(__AVX512F__)
// GCC 12's own AVX-512 header starts some results from a variable that it leaves undefined on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "simd_avx512.h"
#define QUIRE_CPU_ISA avx512
#include "kernels_impl.h"

namespace quire::cpu {
const KernelTable* avx512_kernels() {
  static const KernelTable table = avx512::make_table("avx512");
  return &table;
}
}  // namespace quire::cpu
#else
namespace quire::cpu {
const KernelTable* avx512_kernels() { return nullptr; }
}  // namespace quire::cpu
#endif
