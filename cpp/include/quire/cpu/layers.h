// The small row-wise layers on the CPU. Each throws InvalidArgument for sizes and types that it does not
// support.
#pragma once

#include "quire/kernels/layers.h"

namespace quire::cpu {

void norm(const NormParams& params);
void activate(const ActivateParams& params);
void scale_and_cap(const ScaleAndCapParams& params);
void embedding(const EmbeddingParams& params);

}  // namespace quire::cpu
