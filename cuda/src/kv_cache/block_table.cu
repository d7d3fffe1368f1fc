#include <algorithm>

#include "common/dependency.cuh"
#include "common/dispatch.h"
#include "common/launch.h"
#include "quire/cuda/kv_cache.h"

namespace quire::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxBlocks = 64;  // a step changes few entries: enough for the rare step that changes thousands

// Grid-stride over the updates, one per thread and round.
__global__ void __launch_bounds__(kThreads) block_table_update_kernel(BlockTableUpdateParams p) {
  launch_dependents();
  wait_for_dependencies();
  const int num_updates = min(*p.num_updates, p.max_updates);
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < num_updates; i += gridDim.x * kThreads) {
    const int2 update = reinterpret_cast<const int2*>(p.updates)[i];
    if (update.x >= 0 && update.x < p.num_entries) p.block_tables[update.x] = update.y;
  }
}

}  // namespace

void launch_block_table_update(const BlockTableUpdateParams& p, cudaStream_t stream) {
  check_range("max_updates", p.max_updates, 0, 1 << 30);
  check_range("num_entries", p.num_entries, 0, INT64_MAX);
  if (!is_aligned(p.updates, 8)) refuse("updates", "an odd address", "multiples of 8 bytes");
  LaunchConfig config;
  config.grid = std::min((p.max_updates + kThreads - 1) / kThreads, kMaxBlocks);
  config.block = kThreads;
  config.overlaps = true;
  config.stream = stream;
  launch("block_table_update", block_table_update_kernel, config, p);
}

}  // namespace quire::cuda
