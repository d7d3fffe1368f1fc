// A seal on bytes that leave this process and come back: whoever cannot make it cannot forge or change them.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace quire::triton {

using Seal = std::array<uint64_t, 2>;

// SipHash-2-4 with 128 bits, under a random key of this process. Throws Error where the system has no random
// bytes.
Seal seal_of(std::string_view bytes);

}  // namespace quire::triton
