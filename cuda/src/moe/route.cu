#include <climits>

#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "common/vec.cuh"
#include "quire/cuda/moe.h"

namespace quire::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxExperts = 512;
constexpr int kMaxChosen = 32;  // a lane keeps one

__device__ float minus_inf() { return -__int_as_float(0x7f800000); }

struct Candidate {
  float value;
  int32_t id;
};

// The larger value, of equal ones the smaller id.
struct Better {
  __device__ Candidate operator()(Candidate a, Candidate b) const {
    return a.value > b.value || (a.value == b.value && a.id < b.id) ? a : b;
  }
};

__device__ Candidate best_of_warp(Candidate mine) {
  const Better better;
#pragma unroll
  for (int lanes = kWarpSize / 2; lanes > 0; lanes /= 2) {
    const Candidate other{__shfl_xor_sync(kAllLanes, mine.value, lanes),
                          __shfl_xor_sync(kAllLanes, mine.id, lanes)};
    mine = better(mine, other);
  }
  return mine;
}

// Bit g: group g is among the best ones. values: the warp's [num_experts] in shared memory.
__device__ uint32_t best_groups(const MoeRouteParams& p, const float* values) {
  const int lane = threadIdx.x % kWarpSize;
  const int group_size = p.num_experts / p.num_groups;
  float first = minus_inf(), second = minus_inf();
  if (lane < p.num_groups) {
    for (int i = 0; i < group_size; ++i) {
      const float value = values[lane * group_size + i];
      second = fmaxf(second, fminf(first, value));
      first = fmaxf(first, value);
    }
  }
  const float mine = p.is_sigmoid && group_size > 1 ? first + second : first;
  uint32_t chosen = 0;
  for (int i = 0; i < p.top_groups; ++i) {
    const bool is_left = lane < p.num_groups && !(chosen >> lane & 1);
    const Candidate best = best_of_warp(is_left ? Candidate{mine, lane} : Candidate{minus_inf(), INT_MAX});
    chosen |= 1u << best.id % kWarpSize;
  }
  return chosen;
}

// Grid [ceil(tokens / kWarps)]. One warp routes one token; its lane has experts lane, lane + 32, ...,
// kPerLane of them at most.
template <class T, int kPerLane>
__global__ void __launch_bounds__(kWarps* kWarpSize) route_kernel(MoeRouteParams p) {
  __shared__ float choices[kWarps][kMaxExperts];
  launch_dependents();
  wait_for_dependencies();
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  if (token >= p.num_tokens) return;
  const T* logits = static_cast<const T*>(p.logits) + token * p.stride_logits;
  float scores[kPerLane], choice[kPerLane];
  float largest = minus_inf();
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + i * kWarpSize;
    scores[i] = e < p.num_experts ? to_float(logits[e]) : minus_inf();
    largest = fmaxf(largest, scores[i]);
  }
  if (p.is_sigmoid) {
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) scores[i] = 1.0f / (1.0f + expf(-scores[i]));
  } else {
    largest = warp_reduce(largest, Max());
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      scores[i] = expf(scores[i] - largest);
      sum += scores[i];
    }
    sum = warp_reduce(sum, Sum());
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) scores[i] /= sum;
  }
  uint32_t is_open = 0;  // bit i: the lane's expert i can be taken
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + i * kWarpSize;
    if (e >= p.num_experts) continue;
    is_open |= 1u << i;
    choice[i] = p.bias == nullptr ? scores[i] : scores[i] + p.bias[e];
    if (isnan(choice[i])) choice[i] = minus_inf();
    if (p.num_groups > 1) choices[warp][e] = choice[i];
  }
  if (p.num_groups > 1) {
    __syncwarp();
    const uint32_t groups = best_groups(p, choices[warp]);
    const int group_size = p.num_experts / p.num_groups;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      const int group = (lane + i * kWarpSize) / group_size;
      if (group < p.num_groups && !(groups >> group & 1)) is_open &= ~(1u << i);
    }
  }

  float sum = 0, my_weight = 0;
  int32_t my_id = 0;
  for (int slot = 0; slot < p.top_k; ++slot) {
    Candidate mine{minus_inf(), INT_MAX};
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (is_open >> i & 1) mine = Better()(mine, Candidate{choice[i], lane + i * kWarpSize});
    }
    const int32_t id = best_of_warp(mine).id;  // there is one: at least top_k experts are open
    float score = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) {
      if (id == lane + i * kWarpSize) {
        score = scores[i];
        is_open &= ~(1u << i);
      }
    }
    score = __shfl_sync(kAllLanes, score, id % kWarpSize);
    sum += score;
    if (lane == slot) {
      my_id = id;
      my_weight = score;
    }
  }
  if (lane >= p.top_k) return;
  p.ids[token * p.top_k + lane] = my_id;
  p.weights[token * p.top_k + lane] = (p.renormalize ? my_weight / (sum + 1e-20f) : my_weight) * p.scale;
}

}  // namespace

void launch_moe_route(const MoeRouteParams& p, cudaStream_t stream) {
  check_range("num_tokens", p.num_tokens, 0, INT32_MAX);
  check_range("num_experts", p.num_experts, 1, kMaxExperts);
  check_range("num_groups", p.num_groups, 1, kWarpSize);
  if (p.num_experts % p.num_groups != 0) {
    refuse("num_groups", std::to_string(p.num_groups), "divisors of num_experts");
  }
  check_range("top_groups", p.top_groups, 1, p.num_groups);
  const int num_open = p.num_experts / p.num_groups * p.top_groups;
  check_range("top_k", p.top_k, 1, num_open < kMaxChosen ? num_open : kMaxChosen);
  dispatch_dtype(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    LaunchConfig config;
    config.grid = (p.num_tokens + kWarps - 1) / kWarps;
    config.block = kWarps * kWarpSize;
    config.overlaps = true;
    config.stream = stream;
    launch("moe_route",
           p.num_experts <= 64    ? route_kernel<T, 2>
           : p.num_experts <= 128 ? route_kernel<T, 4>
           : p.num_experts <= 256 ? route_kernel<T, 8>
                                  : route_kernel<T, 16>,
           config, p);
  });
}

}  // namespace quire::cuda
