// Checks, and the choice of the kernels.
#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "float8.cuh"
#include "kernels.h"
#include "quire/cuda/paged_attention.h"
#include "tile_math.cuh"

namespace quire::cuda {
namespace {

using namespace attention;

template <class T, class KV, int kHeadDim>
void launch_prompts(const KernelArgs& prefill, cudaStream_t stream) {
  if constexpr (has_wgmma(kHeadDim) && std::is_same_v<T, KV>) {
    if (prefill.p.v_scale == 1) {
      launch_prefill_wgmma<T, kHeadDim>(prefill, stream);
      return;
    }
  }
  KernelArgs args = prefill;
  args.work.num_workers *= blocks_per_sm(kHeadDim);
  launch_prefill<T, KV, kHeadDim, false>(args, stream);
}

// Head sizes between kHeadDim and the next smaller one.
template <class T, class KV, int kHeadDim>
void launch_padded(const KernelArgs&, const KernelArgs& prefill, cudaStream_t stream) {
  KernelArgs args = prefill;
  args.work.num_workers *= blocks_per_sm(kHeadDim);
  launch_prefill<T, KV, kHeadDim, true>(args, stream);
}

template <class T, class KV, int kHeadDim>
void launch_both(const KernelArgs& decode, const KernelArgs& prefill, cudaStream_t stream) {
  if (decode.follows_prefill) launch_prompts<T, KV, kHeadDim>(prefill, stream);
  if constexpr (kHeadDim == 64) {
    if (folded_heads(prefill.p.config) == 2) {
      launch_decode<T, KV, kHeadDim, 2>(decode, stream);
      return;
    }
  }
  launch_decode<T, KV, kHeadDim, 1>(decode, stream);
}

using Launch = void (*)(const KernelArgs&, const KernelArgs&, cudaStream_t);

template <class T, class KV>
Launch launch_for_head_dim(int32_t head_dim) {
  const auto choose = [&]<int kHeadDim>() {
    return has_decode(head_dim) ? launch_both<T, KV, kHeadDim> : launch_padded<T, KV, kHeadDim>;
  };
  switch (compute_dim(head_dim)) {
    case 64:
      return choose.template operator()<64>();
    case 96:
      return choose.template operator()<96>();
    case 128:
      return choose.template operator()<128>();
    default:
      return choose.template operator()<256>();
  }
}

template <class T>
Launch launch_for_kv(KVDType kv_dtype, int32_t head_dim) {
  switch (kv_dtype) {
    case KVDType::kSame:
      return launch_for_head_dim<T, T>(head_dim);
    case KVDType::kFloat8E4M3:
      return launch_for_head_dim<T, Float8>(head_dim);
    default:
      throw std::invalid_argument("paged attention: no such kv_dtype: " +
                                  std::to_string(static_cast<int32_t>(kv_dtype)));
  }
}

Launch launch_for(DType dtype, KVDType kv_dtype, int32_t head_dim) {
  switch (dtype) {
    case DType::kBFloat16:
      return launch_for_kv<__nv_bfloat16>(kv_dtype, head_dim);
    case DType::kFloat16:
      return launch_for_kv<__half>(kv_dtype, head_dim);
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
  if (!(params.soft_cap >= 0)) {
    throw std::invalid_argument("paged attention: soft_cap must not be negative, got " +
                                std::to_string(params.soft_cap));
  }
  if (params.sinks != nullptr && reinterpret_cast<uintptr_t>(params.sinks) % alignof(float) != 0) {
    throw std::invalid_argument("paged attention: sinks must lie at a multiple of 4 bytes");
  }
  if (params.kv_dtype == KVDType::kFloat8E4M3 && c.head_dim % 16 != 0) {
    throw std::invalid_argument(
        "paged attention: head_dim must be a multiple of 16 with a float8 cache, got " +
        std::to_string(c.head_dim));
  }
  require_aligned("query", params.query, params.stride_query_token);
  require_aligned("out", params.out, params.stride_out_token);
  require_aligned("key_cache", params.key_cache, 0);
  require_aligned("value_cache", params.value_cache, 0);
  const int64_t unit = int64_t{8} * c.num_kv_heads * c.head_dim;
  if (params.stride_block < params.block_size * unit / 8 || params.stride_block % unit != 0) {
    throw std::invalid_argument("paged attention: stride_block must be a multiple of 8 slots, " +
                                std::to_string(unit) + " elements, and at least a block, got " +
                                std::to_string(params.stride_block));
  }

  const Workspace workspace = lay_out(c, params.workspace);
  KernelArgs args{};
  args.p = params;
  args.group = c.num_q_heads / c.num_kv_heads;
  args.block_shift = block_shift;
  args.block_units = static_cast<int32_t>(params.stride_block / unit);
  const float scale = params.softmax_scale * params.k_scale;
  args.scale_log2 = scale * kLog2E;
  args.cap_scale = params.soft_cap > 0 ? 2 * args.scale_log2 / params.soft_cap : 0;
  args.cap_log2 = params.soft_cap * kLog2E;
  args.value_scale = params.v_scale;
  KernelArgs decode = args, prefill = args;
  decode.work = workspace.decode;
  const int32_t fold = folded_heads(c);
  decode.group *= fold;
  decode.p.config.num_kv_heads /= fold;
  prefill.work = workspace.prefill;
  decode.follows_prefill = params.max_query_len * decode.group > kDecodeRows;
  launch_for(params.dtype, params.kv_dtype, c.head_dim)(decode, prefill, stream);
}

}  // namespace quire::cuda
