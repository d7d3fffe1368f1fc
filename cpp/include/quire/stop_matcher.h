// Finds stop strings in a text that arrives byte by byte.
//
// An Aho-Corasick automaton: linear in the text whatever the strings are, and its state says how much of the
// text's end may still become a stop string. The match that counts is the one that is complete first, however
// the text was cut into tokens; of those complete at the same byte, the longest.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "quire/sampling.h"

namespace quire {

class StopMatcher {
 public:
  using State = uint32_t;
  static constexpr State kStart = 0;

  // strings: non-empty.
  explicit StopMatcher(std::span<const std::string> strings);

  State next(State state, uint8_t byte) const {
    for (;;) {
      // Most bytes of a text start no stop string: one table says so, without a look at the nodes.
      if (state == kStart) return first_[byte];
      if (const State child = find_child(state, byte); child != kStart) return child;
      state = nodes_[state].fallback;
    }
  }
  // Bytes of the longest stop string that ends here; 0: none.
  uint32_t match_length(State state) const { return state == kStart ? 0 : nodes_[state].match_length; }
  // Bytes of the longest end of the text that is a proper prefix of a stop string.
  uint32_t hold_length(State state) const { return state == kStart ? 0 : nodes_[state].hold_length; }

 private:
  struct Node {
    State first_child = kStart;
    State next_sibling = kStart;
    State fallback = kStart;  // the longest proper end of this node's string that is a node too
    uint32_t depth = 0;
    uint32_t match_length = 0;
    uint32_t hold_length = 0;
    uint8_t byte = 0;
  };

  State find_child(State state, uint8_t byte) const {
    if (state == kStart) return first_[byte];
    State child = nodes_[state].first_child;
    while (child != kStart && nodes_[child].byte != byte) child = nodes_[child].next_sibling;
    return child;
  }
  State add_child(State state, uint8_t byte);

  std::vector<Node> nodes_;
  std::array<State, 256> first_{};  // the children of kStart, which has many; kStart: none
};

// The matcher of a request's stop strings; null: it has none.
inline std::shared_ptr<const StopMatcher> make_stop_matcher(const SamplingParams& params) {
  return params.stop.empty() ? nullptr : std::make_shared<const StopMatcher>(params.stop);
}

}  // namespace quire
