#include "quire/nearest_name.h"

#include <algorithm>
#include <vector>

namespace quire {
namespace {

constexpr size_t kMaxLength = 80;
constexpr double kMinLikeness = 0.6;

// Characters in the longest run that both have, and in those on its left and on its right.
size_t num_matching(std::string_view a, std::string_view b) {
  size_t begin_a = 0, begin_b = 0, length = 0;
  std::vector<size_t> row(b.size() + 1);  // of a's character i - 1: lengths of the runs that end there
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = b.size(); j > 0; --j) {
      row[j] = a[i - 1] == b[j - 1] ? row[j - 1] + 1 : 0;
      if (row[j] <= length) continue;
      length = row[j];
      begin_a = i - length;
      begin_b = j - length;
    }
  }
  if (length == 0) return 0;
  return length + num_matching(a.substr(0, begin_a), b.substr(0, begin_b)) +
         num_matching(a.substr(begin_a + length), b.substr(begin_b + length));
}

}  // namespace

std::string did_you_mean(std::string_view name, std::span<const std::string_view> known) {
  if (name.size() > kMaxLength) return "";
  std::string_view nearest;
  double best = kMinLikeness;
  for (const std::string_view candidate : known) {
    const size_t length = name.size() + candidate.size();
    // No more can match than the shorter of the two has.
    if (2.0 * std::min(name.size(), candidate.size()) < best * length) continue;
    const double likeness = 2.0 * num_matching(name, candidate) / length;
    if (likeness < best || (likeness == best && !nearest.empty())) continue;
    best = likeness;
    nearest = candidate;
  }
  return nearest.empty() ? "" : " (did you mean \"" + std::string(nearest) + "\"?)";
}

}  // namespace quire
