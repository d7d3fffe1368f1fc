// Changes of the block tables that lie on the GPU.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace quire::cuda {

// block_tables[updates[i][0]] = updates[i][1] for i < *num_updates. The grid follows from max_updates alone,
// so a captured launch serves any count up to it. An index outside the tables is skipped; of two updates of
// the same index either may win. The launch overlaps the kernels in front of it and writes after they have
// ended.
struct BlockTableUpdateParams {
  const int32_t* updates = nullptr;  // [max_updates, 2]: index into the flat tables, block id; 8-byte aligned
  const int32_t* num_updates = nullptr;  // on the device; more than max_updates counts as max_updates
  int32_t max_updates = 0;
  int32_t* block_tables = nullptr;  // [num_entries] = [max_num_seqs, stride], flat
  int64_t num_entries = 0;
};

// Throws std::invalid_argument for sizes below 0 and std::runtime_error when the launch fails.
void launch_block_table_update(const BlockTableUpdateParams& params, cudaStream_t stream);

}  // namespace quire::cuda
