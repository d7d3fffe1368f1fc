// Paged attention on the CPU.
#pragma once

#include "quire/kernels/paged_attention.h"

namespace quire::cpu {

// Accumulates in float32. Throws InvalidArgument for sizes and types that are not supported; the arrays are
// trusted.
void paged_attention(const PagedAttentionParams& params);

}  // namespace quire::cpu
