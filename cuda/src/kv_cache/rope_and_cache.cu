#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "quire/cuda/rope_and_cache.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 128;

// to[0, kSize) and to[half, half + kSize) = the same of from, rotated by the angles from cos and sin on.
template <class T, int kSize>
__device__ void rotate(const T* from, const float* cos, const float* sin, int half, bool is_valid, T* to) {
  Vec<T, kSize> a = load_vec<T, kSize>(from), b = load_vec<T, kSize>(from + half);
  Vec<float, kSize> c, s;
  if (is_valid) {
    c = load_vec<float, kSize>(cos);
    s = load_vec<float, kSize>(sin);
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (!is_valid) c[i] = s[i] = __int_as_float(0x7fc00000);
    const float x = to_float(a[i]), y = to_float(b[i]);
    a[i] = from_float<T>(x * c[i] - y * s[i]);
    b[i] = from_float<T>(fmaf(x, s[i], y * c[i]));
  }
  store_vec(to, a);
  store_vec(to + half, b);
}

// Grid [tokens, parts of a token], block kThreads. The work of a token is a row of items, one per thread:
// first kSize pairs each of the query and key heads, then 2 * kSize elements each of the values.
template <class T, int kSize>
__global__ void __launch_bounds__(kThreads) rope_and_cache_kernel(RopeAndCacheParams p) {
  const int half = p.head_dim / 2, per_head = half / kSize;
  const int num_q_items = p.num_q_heads * per_head, num_kv_items = p.num_kv_heads * per_head;
  int item = blockIdx.y * kThreads + threadIdx.x;
  if (item >= num_q_items + 2 * num_kv_items) return;

  const int64_t token = blockIdx.x;
  const int32_t position = p.positions[token];
  const bool is_valid = position >= 0 && position < p.max_position;
  const int64_t angles = static_cast<int64_t>(position) * half;
  if (item < num_q_items) {
    const int head = item / per_head, d = item % per_head * kSize;
    T* query = static_cast<T*>(p.query) + token * p.stride_token + head * p.head_dim + d;
    rotate<T, kSize>(query, p.cos + angles + d, p.sin + angles + d, half, is_valid, query);
    return;
  }

  const int64_t slot = p.slot_mapping[token];
  if (slot < 0 || slot >= p.num_slots) return;
  const int64_t stored = slot * p.num_kv_heads * p.head_dim;
  item -= num_q_items;
  if (item < num_kv_items) {
    const int head = item / per_head, d = item % per_head * kSize;
    rotate<T, kSize>(static_cast<const T*>(p.key) + token * p.stride_token + head * p.head_dim + d,
                     p.cos + angles + d, p.sin + angles + d, half, is_valid,
                     static_cast<T*>(p.key_cache) + stored + head * p.head_dim + d);
    return;
  }
  item -= num_kv_items;
  const int d = item * 2 * kSize;
  const T* value = static_cast<const T*>(p.value) + token * p.stride_token + d;
  T* value_slot = static_cast<T*>(p.value_cache) + stored + d;
#pragma unroll
  for (int i = 0; i < 2; ++i) store_vec(value_slot + i * kSize, load_vec<T, kSize>(value + i * kSize));
}

}  // namespace

void launch_rope_and_cache(const RopeAndCacheParams& p, cudaStream_t stream) {
  check_range("num_tokens", p.num_tokens, 0, INT32_MAX);
  check_range("num_q_heads", p.num_q_heads, 1, 1 << 16);
  check_range("num_kv_heads", p.num_kv_heads, 1, 1 << 16);
  if (p.head_dim < 32 || p.head_dim > 256 || p.head_dim % 8 != 0) {
    refuse("head_dim", std::to_string(p.head_dim), "multiples of 8 from 32 to 256");
  }
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    if (p.stride_token % kSize != 0) {
      refuse("stride_token", std::to_string(p.stride_token), "multiples of " + std::to_string(kSize));
    }
    for (const void* pointer :
         {static_cast<const void*>(p.query), p.key, p.value, static_cast<const void*>(p.cos),
          static_cast<const void*>(p.sin), static_cast<const void*>(p.key_cache),
          static_cast<const void*>(p.value_cache)}) {
      if (!is_aligned(pointer, 16)) refuse("a pointer", "an odd address", "multiples of 16 bytes");
    }
    // Half a head need not be a multiple of 16 bytes; it is one of 4 elements.
    const bool wide = p.head_dim / 2 % kSize == 0;
    const int size = wide ? kSize : 4;
    const int num_items = (p.num_q_heads + 2 * p.num_kv_heads) * (p.head_dim / 2 / size);
    LaunchConfig config;
    config.grid = dim3(p.num_tokens, (num_items + kThreads - 1) / kThreads);
    config.block = kThreads;
    config.stream = stream;
    launch("rope_and_cache", wide ? rope_and_cache_kernel<T, kSize> : rope_and_cache_kernel<T, 4>, config, p);
  });
}

}  // namespace quire::cuda
