#include "quire/deadlines.h"

#include <algorithm>

#include "quire/live_sequence.h"

namespace quire {

void Deadlines::set(uint64_t request_id, int64_t time_ns) {
  remove(request_id);
  by_time_.emplace(time_ns, request_id);
  times_.emplace(request_id, time_ns);
}

void Deadlines::remove(uint64_t request_id) {
  if (times_.empty()) return;
  const auto found = times_.find(request_id);
  if (found == times_.end()) return;
  by_time_.erase({found->second, request_id});
  times_.erase(found);
}

void PrefillRate::add_step(int32_t num_tokens, int64_t duration_ns) {
  if (num_tokens < num_tokens_needed_ || duration_ns <= 0) return;
  const double ns_per_token = static_cast<double>(duration_ns) / num_tokens;
  best_ns_per_token_ = num_steps_ == 0 ? ns_per_token : std::min(best_ns_per_token_, ns_per_token);
  num_steps_ = std::min(num_steps_ + 1, kMinSteps);
}

std::string explain_deadline(const LiveSequence& request, int64_t now_ns, int32_t num_tokens_left,
                             const PrefillRate& rate) {
  const auto in_ms = [](int64_t ns) { return std::to_string(std::max<int64_t>(ns, 0) / 1'000'000) + " ms"; };
  const std::string begin =
      "deadline exceeded: " + in_ms(request.cold.deadline_ns - request.cold.arrival_ns) + " (deadline_ms) ";
  if (now_ns >= request.cold.deadline_ns) {
    const bool has_waited_only = request.history->admitted_ns == 0;
    return begin + "passed " +
           (has_waited_only ? "before the request's turn came" : "before the first token");
  }
  return begin + "cannot be met: " + in_ms(request.cold.deadline_ns - now_ns) +
         " are left, and the prompt's next " + std::to_string(num_tokens_left) + " tokens take at least " +
         in_ms(rate.least_ns(num_tokens_left));
}

}  // namespace quire
