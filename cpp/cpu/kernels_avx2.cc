// The kernels for machines with AVX2; compiled with those flags (cmake/cpu_isa.cmake).
#include "kernel_table.h"

#if defined(__AVX2__)
#include "simd_avx2.h"
#define QUIRE_CPU_ISA avx2
#include "kernels_impl.h"

namespace quire::cpu {
const KernelTable* avx2_kernels() {
  static const KernelTable table = avx2::make_table("avx2");
  return &table;
}
}  // namespace quire::cpu
#else
namespace quire::cpu {
const KernelTable* avx2_kernels() { return nullptr; }
}  // namespace quire::cpu
#endif
