// Programmatic dependent launch: a kernel launched with LaunchConfig::overlaps may begin while the kernels in
// front of it still run, and does what does not depend on them (set-up, loads of weights) before it waits.
//
// Rules, without which the chain is wrong:
// - Every thread that touches memory which other kernels write or read calls wait_for_dependencies() first,
//   and every block has at least one thread that does, even in blocks without work: only then does the end of
//   this kernel mean the end of all kernels before it.
// - launch_dependents() may come first thing. It lets the next kernel's blocks take the space that this
//   kernel leaves; what they see is still decided by their own wait.
#pragma once

#include <cuda_runtime.h>

namespace quire::cuda {

__device__ inline void wait_for_dependencies() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

__device__ inline void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

}  // namespace quire::cuda
