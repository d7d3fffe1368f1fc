// The ring that a warpgroup fills by copies of boxes of a tensor map. sm_90.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/barrier.cuh"
#include "common/warpgroup.cuh"

namespace quire::cuda::attention {

__device__ inline void publish_barriers() {
  fence_barrier_init();
  fence_shared_for_async();
}

// True in one lane of a whole warp, which the compiler knows: copies need no loop over lanes.
__device__ inline bool elect_lane() {
  uint32_t is_elected;
  asm volatile(
      "{\n"
      ".reg .pred is_elected;\n"
      "elect.sync _|is_elected, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, is_elected;\n"
      "}\n"
      : "=r"(is_elected));
  return is_elected != 0;
}

// One box into shared memory; its bytes count at the barrier.
__device__ inline void copy_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int32_t x, int32_t y,
                                int32_t z, int32_t u, int32_t v) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, "
      "%5, %6, %7}], [%2];\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(u), "r"(v)
      : "memory");
}

}  // namespace quire::cuda::attention
