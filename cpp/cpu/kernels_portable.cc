// The kernels for any machine.
#include "simd_portable.h"
#define QUIRE_CPU_ISA portable
#include "kernels_impl.h"

namespace quire::cpu {
const KernelTable* portable_kernels() {
  static const KernelTable table = portable::make_table("portable");
  return &table;
}
}  // namespace quire::cpu
