// bfloat16 on the CPU.
#pragma once

#include "quire/kernels/dtype.h"

namespace quire::cpu {

// Storage of one bfloat16: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

}  // namespace quire::cpu
