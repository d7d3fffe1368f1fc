// Values of wire.h as bytes: little endian, a string and an array are a u32 count and that many elements.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "quire/error.h"

namespace quire::wire {

template <class T>
void put(std::string& out, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

inline void put_string(std::string& out, std::string_view text) {
  put(out, static_cast<uint32_t>(text.size()));
  out.append(text);
}

template <class T>
void put_array(std::string& out, const std::vector<T>& values) {
  put(out, static_cast<uint32_t>(values.size()));
  out.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

// Takes values from the front of a payload; throws where the payload ends too early.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <class T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

  // A count of elements of at least `element_size` bytes each: bounded by what is left, so that a damaged
  // count cannot ask for memory that the payload does not back.
  uint32_t get_count(size_t element_size) {
    const auto count = get<uint32_t>();
    if (count > bytes_.size() / element_size) {
      throw Error("wire: a count of " + std::to_string(count) + " elements does not fit in the " +
                  std::to_string(bytes_.size()) + " bytes left");
    }
    return count;
  }

  std::string_view get_string() { return take(get_count(1)); }

  template <class T>
  void get_array(std::vector<T>& values) {
    values.resize(get_count(sizeof(T)));
    const auto bytes = take(values.size() * sizeof(T));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  }

  void expect_end() const {
    if (!bytes_.empty())
      throw Error("wire: " + std::to_string(bytes_.size()) + " bytes too many in a payload");
  }

 private:
  std::string_view take(size_t size) {
    if (size > bytes_.size()) refuse_end(size);
    const auto taken = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return taken;
  }

  [[noreturn, gnu::cold, gnu::noinline]] void refuse_end(size_t size) const {
    throw Error("wire: payload ends early: " + std::to_string(size) + " bytes wanted, " +
                std::to_string(bytes_.size()) + " left");
  }

  std::string_view bytes_;
};

}  // namespace quire::wire
