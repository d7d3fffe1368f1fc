// The order in which prompts of requests with several prompts go to the engine: in turns, and only so many at
// a time, so that one request with thousands of prompts does not keep the engine to itself. Requests with one
// prompt have no part in this: they go at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <unordered_map>
#include <utility>

namespace quire::triton {

class PromptTurns {
 public:
  // ClientRequest `id` is a prompt of `request` and takes `n` places in the engine.
  void add(const void* request, uint64_t id, int32_t n) {
    // Prompts of a request come one after the other.
    const auto group = std::find_if(groups_.rbegin(), groups_.rend(),
                                    [&](const Group& known) { return known.request == request; });
    Group& own = group != groups_.rend() ? *group : groups_.emplace_back(request);
    own.prompts.push_back({id, n});
  }

  // The prompt that goes now, if its places and those of all prompts that are with the engine are `limit` at
  // most; a prompt that needs more goes alone. end() follows for each, also for one that ended before its
  // turn came.
  std::optional<uint64_t> next(int32_t limit) {
    if (groups_.empty()) return std::nullopt;
    const Row prompt = groups_.front().prompts.front();
    if (num_places_ > 0 && num_places_ + prompt.n > limit) return std::nullopt;
    Group group = std::move(groups_.front());
    groups_.pop_front();
    group.prompts.pop_front();
    if (!group.prompts.empty()) groups_.push_back(std::move(group));
    places_.emplace(prompt.id, prompt.n);
    num_places_ += prompt.n;
    return prompt.id;
  }

  // Does nothing for a sequence that is no prompt, or whose turn has not come.
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
    std::deque<Row> prompts;
  };

  std::deque<Group> groups_;                      // none is empty; the first has the next turn
  std::unordered_map<uint64_t, int32_t> places_;  // of the prompts that are with the engine
  int32_t num_places_ = 0;
};

}  // namespace quire::triton
