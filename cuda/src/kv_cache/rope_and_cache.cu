#include <type_traits>

#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/fp8.cuh"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "quire/cuda/kv_cache.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 128;

// Divided once, on the host.
struct Reciprocals {
  float head_dim, k_scale, v_scale;
};

int log2_of(int32_t power) {
  int log2 = 0;
  while ((int64_t{1} << log2) < power) ++log2;
  return log2;
}

// to[0, kSize) = x, as the cache's type C: uint8_t holds e4m3 of x * inverse_scale.
template <class C, int kSize>
__device__ void store(C* to, Vec<float, kSize> x, float inverse_scale) {
  if constexpr (std::is_same_v<C, uint8_t>) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) x[i] *= inverse_scale;
    store_vec(to, to_e4m3(x));
  } else {
    store_vec(to, packed<C>(x));
  }
}

// x = x * scale * weight, rounded as launch_norm does.
template <class T, int kSize>
__device__ void normalise(Vec<float, kSize>& x, float scale, const Vec<T, kSize>& weight,
                          const RopeAndCacheParams& p) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) x[i] *= scale;
  if (!p.norm_rounds_once) x = rounded<T>(x);
  const Vec<float, kSize> factors = unpacked(weight);
#pragma unroll
  for (int i = 0; i < kSize; ++i) x[i] *= factors[i] + p.norm_weight_offset;
  x = rounded<T>(x);
}

// Grid [tokens, parts of a token], block kThreads. A head takes num_lanes = 1 << log2_lanes threads, a power
// of two, of which those below half / kSize hold kSize elements of each half of it: a thread's elements are
// pairs. Heads are those of the query, then of the keys, then of the values.
template <class T, class C, int kSize, bool kHasNorm>
__global__ void __launch_bounds__(kThreads)
    rope_and_cache_kernel(RopeAndCacheParams p, Reciprocals one_over, int log2_lanes, int block_shift) {
  launch_dependents();
  const int item = blockIdx.y * kThreads + threadIdx.x;
  const int half = p.head_dim / 2, d = (item & ((1 << log2_lanes) - 1)) * kSize;
  const int head = item >> log2_lanes;
  const bool is_query = head < p.num_q_heads, is_rotated = head < p.num_q_heads + p.num_kv_heads;
  const bool is_item = d < half && head < p.num_q_heads + 2 * p.num_kv_heads;
  const int64_t token = blockIdx.x;

  int64_t slot = -1;
  Vec<float, kSize> cos, sin;
  const auto find_place = [&] {
    if (!is_item) return;
    if (!is_query) slot = p.slot_mapping[token];
    if (!is_rotated) return;
    const int32_t position = p.positions[token];
    if (position >= 0 && position < p.max_position) {
      cos = load_vec<float, kSize>(p.cos + static_cast<int64_t>(position) * half + d);
      sin = load_vec<float, kSize>(p.sin + static_cast<int64_t>(position) * half + d);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) cos[i] = sin[i] = __int_as_float(0x7fc00000);
    }
  };
  Vec<T, kSize> a_weight, b_weight;
  if (kHasNorm && is_item && is_rotated) {
    const T* weight = static_cast<const T*>(is_query ? p.q_norm : p.k_norm) + d;
    a_weight = load_vec<T, kSize>(weight);
    b_weight = load_vec<T, kSize>(weight + half);
  }
  if (p.places_are_settled) find_place();
  wait_for_dependencies();
  if (!p.places_are_settled) find_place();

  T* const from = static_cast<T*>(p.qkv) + token * p.stride_token + head * p.head_dim + d;
  const bool is_stored = is_item && (is_query || (slot >= 0 && slot < p.num_slots));
  Vec<float, kSize> x = {}, y = {};
  if (is_stored) {
    const Vec<T, kSize> a = load_vec<T, kSize>(from), b = load_vec<T, kSize>(from + half);
    x = unpacked(a);
    y = unpacked(b);
  }
  if (kHasNorm) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i) squares = fmaf(x[i], x[i], fmaf(y[i], y[i], squares));
    for (int lanes = (1 << log2_lanes) / 2; lanes > 0; lanes /= 2) {  // those of a head; all take part
      squares += __shfl_xor_sync(kAllLanes, squares, lanes);
    }
    if (is_rotated) {
      const float scale = rsqrtf(fmaf(squares, one_over.head_dim, p.norm_eps));
      normalise(x, scale, a_weight, p);
      normalise(y, scale, b_weight, p);
    }
  }
  if (!is_stored) return;
  if (is_rotated) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float first = x[i] * cos[i] - y[i] * sin[i];
      y[i] = fmaf(x[i], sin[i], y[i] * cos[i]);
      x[i] = first;
    }
  }
  if (is_query) {
    store(from, x, 1.0f);
    store(from + half, y, 1.0f);
    return;
  }
  const int kv_head = head - p.num_q_heads - (is_rotated ? 0 : p.num_kv_heads);
  const int64_t offset_in_block = slot & (p.block_size - 1);
  C* cache = static_cast<C*>(is_rotated ? p.key_cache : p.value_cache) +
             (slot >> block_shift) * p.stride_block +
             (offset_in_block * p.num_kv_heads + kv_head) * p.head_dim + d;
  const float inverse_scale = is_rotated ? one_over.k_scale : one_over.v_scale;
  store(cache, x, inverse_scale);
  store(cache + half, y, inverse_scale);
}

template <class T, class C, int kSize>
void launch_heads(const RopeAndCacheParams& p, cudaStream_t stream) {
  const int log2_lanes = log2_of((p.head_dim / 2 + kSize - 1) / kSize);
  const int num_items = (p.num_q_heads + 2 * p.num_kv_heads) << log2_lanes;
  const Reciprocals one_over{1.0f / static_cast<float>(p.head_dim), 1.0f / p.k_scale, 1.0f / p.v_scale};
  LaunchConfig config;
  config.grid = dim3(p.num_tokens, (num_items + kThreads - 1) / kThreads);
  config.block = kThreads;
  config.overlaps = true;
  config.stream = stream;
  launch("rope_and_cache",
         p.q_norm != nullptr ? rope_and_cache_kernel<T, C, kSize, true>
                             : rope_and_cache_kernel<T, C, kSize, false>,
         config, p, one_over, log2_lanes, log2_of(p.block_size));
}

void check(const RopeAndCacheParams& p, int vec_size) {
  check_range("num_tokens", p.num_tokens, 0, INT32_MAX);
  check_range("num_q_heads", p.num_q_heads, 1, 1 << 16);
  check_range("num_kv_heads", p.num_kv_heads, 1, 1 << 16);
  if (p.head_dim < 32 || p.head_dim > 256 || p.head_dim % 8 != 0) {
    refuse("head_dim", std::to_string(p.head_dim), "multiples of 8 from 32 to 256");
  }
  if (p.stride_token % vec_size != 0) {
    refuse("stride_token", std::to_string(p.stride_token), "multiples of " + std::to_string(vec_size));
  }
  if (p.block_size < 1 || (p.block_size & (p.block_size - 1)) != 0) {
    refuse("block_size", std::to_string(p.block_size), "powers of two");
  }
  const int64_t block = int64_t{p.block_size} * p.num_kv_heads * p.head_dim;
  if (p.stride_block < block || p.stride_block % 16 != 0) {
    refuse("stride_block", std::to_string(p.stride_block),
           "multiples of 16, at least a block of " + std::to_string(block));
  }
  if ((p.q_norm == nullptr) != (p.k_norm == nullptr)) {
    refuse("q_norm and k_norm", "one of them", "both or none");
  }
  for (const float scale : {p.k_scale, p.v_scale}) {
    if (!(scale > 0)) refuse("k_scale, v_scale", std::to_string(scale), "above 0");
  }
  for (const void* pointer :
       {static_cast<const void*>(p.qkv), static_cast<const void*>(p.cos), static_cast<const void*>(p.sin),
        static_cast<const void*>(p.key_cache), static_cast<const void*>(p.value_cache), p.q_norm, p.k_norm}) {
    if (!is_aligned(pointer, 16)) refuse("a pointer", "an odd address", "multiples of 16 bytes");
  }
}

}  // namespace

void launch_rope_and_cache(const RopeAndCacheParams& p, cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kSize = kVecSize<T>;
    check(p, kSize);
    const bool is_float8 = p.kv_dtype == KVDType::kFloat8E4M3;
    // Half a head need not be a multiple of 16 bytes; it is one of 4 elements.
    if (p.head_dim / 2 % kSize == 0) {
      is_float8 ? launch_heads<T, uint8_t, kSize>(p, stream) : launch_heads<T, T, kSize>(p, stream);
    } else {
      is_float8 ? launch_heads<T, uint8_t, 4>(p, stream) : launch_heads<T, T, 4>(p, stream);
    }
  });
}

}  // namespace quire::cuda
