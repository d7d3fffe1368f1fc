// Checks, and the choice of the kernels.
#include <cmath>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "quire/cuda/paged_attention.h"
#include "tile_math.cuh"

namespace quire::cuda {
namespace {

using namespace attention;

template <class T, int kHeadDim>
void launch_both(const KernelArgs& decode, const KernelArgs& prefill, bool has_prefill, cudaStream_t stream) {
  launch_decode<T, kHeadDim>(decode, stream);
  if (!has_prefill) return;
  if constexpr (has_wgmma(kHeadDim)) {
    launch_prefill_wgmma<T, kHeadDim>(prefill, stream);
  } else {
    KernelArgs args = prefill;
    args.work.num_workers *= blocks_per_sm(kHeadDim);  // blocks take pieces from a counter, however many
    launch_prefill<T, kHeadDim>(args, stream);
  }
}

using Launch = void (*)(const KernelArgs&, const KernelArgs&, bool, cudaStream_t);

template <class T>
Launch launch_for_head_dim(int32_t head_dim) {
  switch (head_dim) {
    case 64:
      return launch_both<T, 64>;
    case 96:
      return launch_both<T, 96>;
    case 128:
      return launch_both<T, 128>;
    case 256:
      return launch_both<T, 256>;
    default:
      throw std::invalid_argument("paged attention: head_dim must be 64, 96, 128 or 256, got " +
                                  std::to_string(head_dim));
  }
}

Launch launch_for(AttentionDType dtype, int32_t head_dim) {
  switch (dtype) {
    case AttentionDType::kBFloat16:
      return launch_for_head_dim<__nv_bfloat16>(head_dim);
    case AttentionDType::kFloat16:
      return launch_for_head_dim<__half>(head_dim);
    default:
      throw std::invalid_argument("paged attention: no such dtype: " +
                                  std::to_string(static_cast<int32_t>(dtype)));
  }
}

void require_aligned(const char* what, const void* pointer, int64_t stride) {
  if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0 || stride % 8 != 0) {
    throw std::invalid_argument(std::string("paged attention: ") + what +
                                " must lie at a multiple of 16 bytes, rows a multiple of 8 elements apart");
  }
}

}  // namespace

void launch_paged_attention(const PagedAttentionParams& params, cudaStream_t stream) {
  const PagedAttentionConfig& c = params.config;
  check(c);
  int32_t block_shift = 4;
  while (block_shift < 16 && (1 << block_shift) != params.block_size) ++block_shift;
  if (block_shift == 16) {
    throw std::invalid_argument("paged attention: block_size must be a power of two, at least 16, got " +
                                std::to_string(params.block_size));
  }
  require_aligned("query", params.query, params.stride_query_token);
  require_aligned("out", params.out, params.stride_out_token);
  require_aligned("key_cache", params.key_cache, 0);
  require_aligned("value_cache", params.value_cache, 0);

  const Workspace workspace = lay_out(c, params.workspace);
  KernelArgs args{};
  args.p = params;
  args.group = c.num_q_heads / c.num_kv_heads;
  args.block_shift = block_shift;
  args.scale_log2 = params.softmax_scale * static_cast<float>(M_LOG2E);
  KernelArgs decode = args, prefill = args;
  decode.work = workspace.decode;
  prefill.work = workspace.prefill;
  const bool has_prefill = params.max_query_len * args.group > kDecodeRows;
  launch_for(params.dtype, c.head_dim)(decode, prefill, has_prefill, stream);
}

}  // namespace quire::cuda
