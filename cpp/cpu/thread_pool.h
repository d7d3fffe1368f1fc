// A fork-join pool for kernels.
//
// Items are claimed from one counter by whoever is awake, the caller first of all, and the caller waits only
// for items that someone has claimed: a worker that wakes up late costs nothing. Which thread computes an
// item never changes its result. Idle workers sleep at once, for the same cores run torch's GEMMs.
#pragma once

#include <cstdint>

namespace quire::cpu {

// Runs body(context, begin, end) for ranges that cover [0, num_items), each at most `grain` long. num_threads
// as set. body must not throw, nor call parallel_for. Called from two threads at once, the second runs its
// work alone.
using RangeBody = void (*)(const void* context, int64_t begin, int64_t end);
void parallel_for(int64_t num_items, int64_t grain, RangeBody body, const void* context);

// Takes a callable; is_large false runs it on the caller's thread.
template <class Body>
void parallel_for(bool is_large, int64_t num_items, int64_t grain, const Body& body) {
  if (!is_large) {
    body(int64_t{0}, num_items);
    return;
  }
  parallel_for(
      num_items, grain,
      [](const void* context, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      &body);
}

}  // namespace quire::cpu
