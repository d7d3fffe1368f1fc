#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "quire/cuda/sampling.h"
#include "view.cuh"

namespace quire::cuda {
namespace sampling {
namespace {

constexpr int kIdsPerBlock = 8192;
constexpr uint32_t kSeen = 0x80000000u;

// Grid [vocab_size / kIdsPerBlock, num_seqs], block kThreads. Each block goes through all of the request's
// tokens for the ids that are its own.
__global__ void __launch_bounds__(kThreads) token_counts_kernel(TokenCountsParams p) {
  __shared__ uint32_t counts[kIdsPerBlock];
  launch_dependents();
  const int begin = blockIdx.x * kIdsPerBlock, size = min(kIdsPerBlock, p.vocab_size - begin);
  for (int i = threadIdx.x; i < size; i += kThreads) counts[i] = 0;
  __syncthreads();
  wait_for_dependencies();
  const int seq_idx = blockIdx.y, first = p.token_offsets[seq_idx], end = p.token_offsets[seq_idx + 1];
  const int prompt_end = first + p.prompt_lens[seq_idx];
  for (int i = first + threadIdx.x; i < end; i += kThreads) {
    const int64_t place = static_cast<int64_t>(p.token_ids[i]) - begin;
    if (place < 0 || place >= size) continue;
    if (i < prompt_end) {
      atomicOr(&counts[place], kSeen);
    } else {
      atomicAdd(&counts[place], 1u);
    }
  }
  __syncthreads();
  uint16_t* out = p.token_counts + static_cast<int64_t>(p.rows[seq_idx]) * p.vocab_size + begin;
  for (int i = threadIdx.x; i < size; i += kThreads) {
    const uint32_t count = min(counts[i] & ~kSeen, static_cast<uint32_t>(kMaxCount));
    out[i] = static_cast<uint16_t>(count | ((counts[i] & kSeen) != 0 ? kInPrompt : 0));
  }
}

}  // namespace
}  // namespace sampling

void launch_token_counts(const TokenCountsParams& p, cudaStream_t stream) {
  using namespace sampling;
  check_range("num_seqs", p.num_seqs, 0, 65535);
  check_range("vocab_size", p.vocab_size, 1, INT32_MAX - kIdsPerBlock);
  LaunchConfig config;
  config.grid = dim3((p.vocab_size + kIdsPerBlock - 1) / kIdsPerBlock, p.num_seqs);
  config.block = kThreads;
  config.overlaps = true;
  config.stream = stream;
  launch("token_counts", token_counts_kernel, config, p);
}

}  // namespace quire::cuda
