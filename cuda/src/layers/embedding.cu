#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "quire/cuda/layers.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;

// Grid [rows, parts of a row], block kThreads: each thread copies one vector of kSize elements.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) embedding_kernel(EmbeddingParams p) {
  launch_dependents();
  wait_for_dependencies();
  const int d = (blockIdx.y * kThreads + threadIdx.x) * kSize;
  if (d >= p.hidden_size) return;
  const int64_t hidden_size = p.hidden_size;
  int32_t id = p.token_ids[blockIdx.x];
  if (id < 0 && ~id < p.num_last_token_ids) id = p.last_token_ids[~id];
  Vec<T, kSize> vec;
  if (id >= 0 && id < p.vocab_size) {
    vec = load_vec<T, kSize>(static_cast<const T*>(p.table) + id * hidden_size + d);
    if (p.scale != 1) {
      Vec<float, kSize> scaled = unpacked(vec);
#pragma unroll
      for (int i = 0; i < kSize; ++i) scaled[i] *= p.scale;
      vec = packed<T>(scaled);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) vec[i] = from_float<T>(__int_as_float(0x7fc00000));
  }
  store_vec(static_cast<T*>(p.out) + blockIdx.x * hidden_size + d, vec);
}

}  // namespace

void launch_embedding(const EmbeddingParams& p, cudaStream_t stream) {
  check_range("num_tokens", p.num_tokens, 0, INT32_MAX);
  check_range("hidden_size", p.hidden_size, 1, 1 << 20);
  check_range("num_last_token_ids", p.num_last_token_ids, 0, p.last_token_ids == nullptr ? 0 : INT32_MAX);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    const bool wide = p.hidden_size % kSize == 0 && is_aligned(p.table, 16) && is_aligned(p.out, 16);
    const int per_block = kThreads * (wide ? kSize : 1);
    LaunchConfig config;
    config.grid = dim3(p.num_tokens, (p.hidden_size + per_block - 1) / per_block);
    config.block = kThreads;
    config.overlaps = true;
    config.stream = stream;
    launch("embedding", wide ? embedding_kernel<T, kSize> : embedding_kernel<T, 1>, config, p);
  });
}

}  // namespace quire::cuda
