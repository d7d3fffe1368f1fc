#include <algorithm>

#include "common/dispatch.h"
#include "common/launch.h"
#include "common/vec.cuh"
#include "quire/cuda/kv_cache.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPartBytes = 4 * kThreads * 16;
constexpr int64_t kMaxParts = 256;  // of a block; a large one takes more rounds

// Grid [copies, parts], block kThreads: a share of one KV block, 16 bytes per thread and round.
__global__ void __launch_bounds__(kThreads) copy_blocks_kernel(CopyBlocksParams p) {
  const int2 copy = reinterpret_cast<const int2*>(p.copies)[blockIdx.x];
  if (copy.x < 0 || copy.x >= p.num_blocks || copy.y < 0 || copy.y >= p.num_blocks) return;
  const char* from = static_cast<const char*>(p.cache) + copy.x * p.block_bytes;
  char* to = static_cast<char*>(p.cache) + copy.y * p.block_bytes;
  const int64_t first = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * 16;
  for (int64_t i = first; i < p.block_bytes; i += gridDim.y * (kThreads * 16)) {
    store_vec(to + i, load_vec<char, 16>(from + i));
  }
}

}  // namespace

void launch_copy_blocks(const CopyBlocksParams& p, cudaStream_t stream) {
  check_range("num_copies", p.num_copies, 0, 1 << 30);
  check_range("num_blocks", p.num_blocks, 0, INT32_MAX);
  check_range("block_bytes", p.block_bytes, 0, INT64_MAX);
  if (p.block_bytes % 16 != 0) refuse("block_bytes", std::to_string(p.block_bytes), "multiples of 16");
  if (!is_aligned(p.copies, 8)) refuse("copies", "an odd address", "multiples of 8 bytes");
  if (!is_aligned(p.cache, 16)) refuse("cache", "an odd address", "multiples of 16 bytes");
  LaunchConfig config;
  const int64_t parts = std::clamp((p.block_bytes + kPartBytes - 1) / kPartBytes, int64_t{1}, kMaxParts);
  config.grid = dim3(p.num_copies, static_cast<uint32_t>(parts));
  config.block = kThreads;
  config.stream = stream;
  launch("copy_blocks", copy_blocks_kernel, config, p);
}

}  // namespace quire::cuda
