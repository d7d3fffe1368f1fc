#include "quire/stop_matcher.h"

#include <algorithm>

#include "quire/error.h"

namespace quire {

StopMatcher::StopMatcher(std::span<const std::string> strings) {
  size_t num_bytes = 0;
  for (const std::string& string : strings) num_bytes += string.size();
  nodes_.reserve(num_bytes + 1);
  nodes_.emplace_back();
  for (const std::string& string : strings) {
    if (string.empty()) throw InvalidArgument("stop", "an empty string", "non-empty strings");
    State state = kStart;
    for (char c : string) {
      const auto byte = static_cast<uint8_t>(c);
      const State child = find_child(state, byte);
      state = child != kStart ? child : add_child(state, byte);
    }
    nodes_[state].match_length = static_cast<uint32_t>(string.size());
  }

  // Breadth first, so that a node's fallback, which is shorter, is complete before the node.
  std::vector<State> order;
  order.reserve(nodes_.size());
  for (const State child : first_) {
    if (child != kStart) order.push_back(child);
  }
  for (size_t i = 0; i < order.size(); ++i) {
    const State state = order[i];
    Node& node = nodes_[state];
    const Node& fallback = nodes_[node.fallback];
    node.match_length = std::max(node.match_length, fallback.match_length);
    node.hold_length = node.first_child != kStart ? node.depth : fallback.hold_length;
    for (State child = node.first_child; child != kStart; child = nodes_[child].next_sibling) {
      nodes_[child].fallback = next(node.fallback, nodes_[child].byte);
      order.push_back(child);
    }
  }
}

StopMatcher::State StopMatcher::add_child(State state, uint8_t byte) {
  const auto child = static_cast<State>(nodes_.size());
  nodes_.emplace_back();
  nodes_[child].byte = byte;
  nodes_[child].depth = nodes_[state].depth + 1;
  if (state == kStart) {
    first_[byte] = child;
    return child;
  }
  nodes_[child].next_sibling = nodes_[state].first_child;
  nodes_[state].first_child = child;
  return child;
}

}  // namespace quire
