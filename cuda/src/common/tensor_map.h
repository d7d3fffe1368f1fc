// Descriptions of tensors for the copy engine.
#pragma once

#include <cuda.h>

namespace quire::cuda {

// cuTensorMapEncodeTiled of elements without gaps, interleaving or values for what lies outside but
// zeros. sizes, box: [rank], innermost first; strides: [rank - 1], bytes. Throws std::runtime_error where the
// driver refuses.
CUtensorMap encode_tensor_map(CUtensorMapDataType type, int rank, const void* data, const cuuint64_t* sizes,
                              const cuuint64_t* strides, const cuuint32_t* box, CUtensorMapSwizzle swizzle,
                              CUtensorMapL2promotion promotion);

}  // namespace quire::cuda
