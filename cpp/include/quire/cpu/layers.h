// The small row-wise layers on the CPU. Each throws InvalidArgument for sizes and types that it does not
// support.
#pragma once

#include "quire/kernels/layers.h"

namespace quire::cpu {

void rms_norm(const RmsNormParams& params);
void silu_mul(const SiluMulParams& params);
void embedding(const EmbeddingParams& params);

}  // namespace quire::cpu
