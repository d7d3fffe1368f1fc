// The bindings of quire._cuda without its kernels: on machines without a CUDA toolkit they say what _cuda's
// stub file must be. Every launch throws.
#include <stdexcept>

#include "bindings_cuda/bindings.h"
#include "core_parts.h"
#include "quire/cuda/gemm.h"
#include "quire/cuda/kv_cache.h"
#include "quire/cuda/layers.h"
#include "quire/cuda/moe.h"
#include "quire/cuda/paged_attention.h"
#include "quire/cuda/sampling.h"

namespace quire::cuda {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("_core_parts.cuda has no kernels"); }

}  // namespace

void launch_norm(const NormParams&, cudaStream_t) { refuse(); }
void launch_activate(const ActivateParams&, cudaStream_t) { refuse(); }
void launch_quantize_rows(const QuantizeRowsParams&, cudaStream_t) { refuse(); }
void launch_scale_and_cap(const ScaleAndCapParams&, cudaStream_t) { refuse(); }
void launch_embedding(const EmbeddingParams&, cudaStream_t) { refuse(); }
void launch_gather_rows(const GatherRowsParams&, cudaStream_t) { refuse(); }
void launch_rope_and_cache(const RopeAndCacheParams&, cudaStream_t) { refuse(); }
void launch_block_table_update(const BlockTableUpdateParams&, cudaStream_t) { refuse(); }
void launch_copy_blocks(const CopyBlocksParams&, cudaStream_t) { refuse(); }
size_t paged_attention_workspace_bytes(const PagedAttentionConfig&) { refuse(); }
void launch_paged_attention_plan(const PagedAttentionPlanParams&, cudaStream_t) { refuse(); }
void launch_paged_attention(const PagedAttentionParams&, cudaStream_t) { refuse(); }
SkinnyGemmWeight make_skinny_gemm_weight(const void*, int64_t, int64_t, DType, bool, const WeightScales&) {
  refuse();
}
WideGemmWeight make_wide_gemm_weight(const void*, int64_t, int64_t, DType, bool, const float*, int32_t) {
  refuse();
}
void launch_skinny_gemm(const SkinnyGemmParams&, cudaStream_t) { refuse(); }
void launch_wide_gemm(const WideGemmParams&, cudaStream_t) { refuse(); }
void launch_split_gemm(const SplitGemmParams&, cudaStream_t) { refuse(); }
void launch_widened_gemm(const WidenedGemmParams&, cudaStream_t) { refuse(); }
void launch_moe_route(const MoeRouteParams&, cudaStream_t) { refuse(); }
void launch_moe_sort(const MoeSortParams&, cudaStream_t) { refuse(); }
void launch_moe_gemm(const MoeGemmParams&, cudaStream_t) { refuse(); }
void launch_moe_combine(const MoeCombineParams&, cudaStream_t) { refuse(); }
void launch_sample(const SampleParams&, cudaStream_t) { refuse(); }
void launch_token_counts(const TokenCountsParams&, cudaStream_t) { refuse(); }
void launch_logprobs(const LogprobsParams&, cudaStream_t) { refuse(); }

}  // namespace quire::cuda

namespace quire::core_parts {

void bind_cuda(py::module_& m) {
  py::module_ cuda = m.def_submodule("cuda");
  bindings::bind_cuda(cuda);
}

}  // namespace quire::core_parts
