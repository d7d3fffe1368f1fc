// When requests with a deadline must be looked at, and how fast prompts can be computed at best.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

namespace quire {

struct LiveSequence;

// The times at which requests are due. Empty, and free, while no request has a deadline.
class Deadlines {
 public:
  // Replaces the time of a request that is there already.
  void set(uint64_t request_id, int64_t time_ns);
  void remove(uint64_t request_id);
  // A request whose time has come; it stays until set() or remove().
  std::optional<uint64_t> due(int64_t now_ns) const {
    if (by_time_.empty() || by_time_.begin()->first > now_ns) return std::nullopt;
    return by_time_.begin()->second;
  }

 private:
  std::set<std::pair<int64_t, uint64_t>> by_time_;
  std::unordered_map<uint64_t, int64_t> times_;
};

// A lower bound of the time that a prompt takes, from the fastest of the steps so far.
//
// Only steps that used a good part of the token budget say something: small ones are slow per token. And only
// several of them: the first ones may have warmed something up. What is left is halved, so that a bound is
// not missed by a device that gets faster.
class PrefillRate {
 public:
  explicit PrefillRate(int32_t max_num_batched_tokens)
      : num_tokens_needed_((max_num_batched_tokens + 3) / 4) {}

  void add_step(int32_t num_tokens, int64_t duration_ns);
  // 0 until the rate is known.
  int64_t least_ns(int32_t num_tokens) const {
    return num_steps_ < kMinSteps ? 0 : static_cast<int64_t>(best_ns_per_token_ * num_tokens / kMargin);
  }

 private:
  static constexpr int32_t kMinSteps = 8;
  static constexpr double kMargin = 2;

  const int32_t num_tokens_needed_;  // in a step
  int32_t num_steps_ = 0;
  double best_ns_per_token_ = 0;
};

// Why a deadline ends a request that has no output, for the client. num_tokens_left: of its prompt, to be
// computed.
std::string explain_deadline(const LiveSequence& request, int64_t now_ns, int32_t num_tokens_left,
                             const PrefillRate& rate);

}  // namespace quire
