// The order in which rows of requests with several prompts go to the engine: in turns, and only so many at a
// time, so that one request with thousands of rows does not keep the engine to itself. Requests with one
// prompt have no part in this: they go at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <utility>

namespace quire::triton {

class RowTurns {
 public:
  // Sequence `id` is a row of `request` and takes `n` places in the engine.
  void add(const void* request, uint64_t id, int32_t n) {
    // Rows of a request come one after the other.
    const auto group = std::find_if(groups_.rbegin(), groups_.rend(),
                                    [&](const Group& known) { return known.request == request; });
    Group& own = group != groups_.rend() ? *group : groups_.emplace_back(request);
    own.rows.push_back({id, n});
  }

  // The row that goes now, if its places and those of all rows that are with the engine are `limit` at most;
  // a row that needs more goes alone. end() follows for each, also for one that ended before its turn came.
  std::optional<uint64_t> next(int32_t limit) {
    if (groups_.empty()) return std::nullopt;
    const Row row = groups_.front().rows.front();
    if (num_places_ > 0 && num_places_ + row.n > limit) return std::nullopt;
    Group group = std::move(groups_.front());
    groups_.pop_front();
    group.rows.pop_front();
    if (!group.rows.empty()) groups_.push_back(std::move(group));
    places_.emplace(row.id, row.n);
    num_places_ += row.n;
    return row.id;
  }

  // Does nothing for a sequence that is no row, or whose turn has not come.
  void end(uint64_t id) {
    const auto found = places_.find(id);
    if (found == places_.end()) return;
    num_places_ -= found->second;
    places_.erase(found);
  }

  void clear() {
    groups_.clear();
    places_.clear();
    num_places_ = 0;
  }

 private:
  struct Row {
    uint64_t id;
    int32_t n;
  };
  struct Group {
    explicit Group(const void* identity) : request(identity) {}
    const void* request;  // never looked into
    std::deque<Row> rows;
  };

  std::deque<Group> groups_;                      // none is empty; the first has the next turn
  std::unordered_map<uint64_t, int32_t> places_;  // of the rows that are with the engine
  int32_t num_places_ = 0;
};

}  // namespace quire::triton
