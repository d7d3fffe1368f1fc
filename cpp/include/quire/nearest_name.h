// "Did you mean": what an error says about a name that nothing has.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace quire {

// ` (did you mean "x"?)` for the known name that is most like `name`, or "". A long name is like none, and
// would take long to compare.
std::string did_you_mean(std::string_view name, std::span<const std::string_view> known);

}  // namespace quire
