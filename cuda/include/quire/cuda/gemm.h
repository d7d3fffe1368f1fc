// The GEMMs on the GPU. All functions throw std::invalid_argument for what they do not support; launches
// throw std::runtime_error when they fail.
#pragma once

#include "quire/cuda/stream.h"
#include "quire/kernels/gemm.h"

namespace quire::cuda {

// w: 16-byte aligned; k: a multiple of 8, at least 64, of float8 of 16, at least
// 128, of four bits of 32, at least 256; n: at least 1, with
// silu_mul a multiple of 16. dtype: of x and out.
SkinnyGemmWeight make_skinny_gemm_weight(const void* w, int64_t n, int64_t k, DType dtype, bool silu_mul,
                                         const WeightScales& scales = {});
// w: 16-byte aligned; k: a multiple of 8, at least 64, of float8 of 16, at least 128; columns of out (n, or n
// / 2 with silu_mul): a multiple of 8.
WideGemmWeight make_wide_gemm_weight(const void* w, int64_t n, int64_t k, DType dtype, bool silu_mul,
                                     const float* scale, int32_t num_scales);

void launch_skinny_gemm(const SkinnyGemmParams& params, cudaStream_t stream);
void launch_wide_gemm(const WideGemmParams& params, cudaStream_t stream);
void launch_split_gemm(const SplitGemmParams& params, cudaStream_t stream);
void launch_widened_gemm(const WidenedGemmParams& params, cudaStream_t stream);

}  // namespace quire::cuda
