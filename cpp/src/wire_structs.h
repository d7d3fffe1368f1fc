// Structs as bytes, from their lists of members (quire/members.h):
//   struct           its members, in order
//   string, vector   u32 count, then the elements
//   optional         u8 0, or u8 1 and the value
//   bool             u8, 0 or 1
//   enum             its underlying type
//   OpenText         u32
// What has no padding and no bad values (kIsPlain) is copied as it lies in memory.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "quire/members.h"
#include "quire/request.h"
#include "wire_bytes.h"

namespace quire::wire {

static_assert(std::endian::native == std::endian::little, "the wire is little endian and written by memcpy");

template <class T>
constexpr bool kIsPlain = std::is_arithmetic_v<T> && !std::is_same_v<T, bool>;
template <>
inline constexpr bool kIsPlain<LogitBias> = true;
template <>
inline constexpr bool kIsPlain<Logprob> = true;
template <>
inline constexpr bool kIsPlain<RequestTiming> = true;
template <>
inline constexpr bool kIsPlain<Observation> = true;
static_assert(sizeof(LogitBias) == 8 && std::is_trivially_copyable_v<LogitBias>, "copied as bytes");

template <class T>
constexpr bool kIsOptional = false;
template <class T>
constexpr bool kIsOptional<std::optional<T>> = true;
template <class T>
constexpr bool kIsVector = false;
template <class T>
constexpr bool kIsVector<std::vector<T>> = true;

// The largest value of an enum; each enum that travels has one.
template <class T>
constexpr T kLast;
template <>
inline constexpr FinishReason kLast<FinishReason> = kLastFinishReason;

// Values of a fixed size, and the number that each travels as.
template <class T>
constexpr bool kIsScalar =
    kIsPlain<T> || std::is_same_v<T, bool> || std::is_enum_v<T> || std::is_same_v<T, OpenText>;
template <class T>
auto to_scalar(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return static_cast<uint8_t>(value);
  } else if constexpr (std::is_enum_v<T>) {
    return static_cast<std::underlying_type_t<T>>(value);
  } else if constexpr (std::is_same_v<T, OpenText>) {
    return value.bits();
  } else {
    return value;
  }
}
template <class T>
using Scalar = decltype(to_scalar(std::declval<T>()));

// Bytes of the shortest encoding: what each element of a count must be backed by.
template <class T>
constexpr size_t min_size() {
  if constexpr (kIsScalar<T>) {
    return sizeof(Scalar<T>);
  } else if constexpr (std::is_same_v<T, std::string> || kIsVector<T>) {
    return sizeof(uint32_t);
  } else if constexpr (kIsOptional<T>) {
    return sizeof(uint8_t);
  } else {
    size_t size = 0;
    for_each_member<T>([&]<class M>(const M&) { size += min_size<typename M::Type>(); });
    return size;
  }
}

template <class T>
void write(std::string& out, const T& value) {
  if constexpr (kIsScalar<T>) {
    put(out, to_scalar(value));
  } else if constexpr (std::is_same_v<T, std::string>) {
    put_string(out, value);
  } else if constexpr (kIsOptional<T>) {
    write(out, value.has_value());
    if (value) write(out, *value);
  } else if constexpr (kIsVector<T>) {
    if constexpr (kIsPlain<typename T::value_type>) {
      put_array(out, value);
    } else {
      put(out, static_cast<uint32_t>(value.size()));
      for (const auto& element : value) write(out, element);
    }
  } else {
    static_assert(has_all_members<T>());
    // Scalars that follow each other are appended together: a string grows in tens of cycles.
    char scalars[min_size<T>()] = {};
    size_t size = 0;
    for_each_member<T>([&]<class M>(const M& member) {
      if constexpr (kIsScalar<typename M::Type>) {
        const auto scalar = to_scalar(value.*member.pointer);
        std::memcpy(scalars + size, &scalar, sizeof(scalar));
        size += sizeof(scalar);
      } else {
        out.append(scalars, size);
        size = 0;
        write(out, value.*member.pointer);
      }
    });
    out.append(scalars, size);
  }
}

// Throws Error where the bytes end early, and for values that write() cannot have made. Memory of `value` is
// reused.
template <class T>
void read(Reader& reader, T& value) {
  if constexpr (kIsScalar<T>) {
    const auto scalar = reader.get<Scalar<T>>();
    if constexpr (std::is_same_v<T, bool>) {
      if (scalar > 1) throw Error("wire: a flag of " + std::to_string(scalar));
    } else if constexpr (std::is_enum_v<T>) {
      if (scalar > to_scalar(kLast<T>)) {
        throw Error("wire: an enumeration has no value " + std::to_string(scalar));
      }
    }
    value = T(scalar);
  } else if constexpr (std::is_same_v<T, std::string>) {
    value = reader.get_string();
  } else if constexpr (kIsOptional<T>) {
    bool has_value = false;
    read(reader, has_value);
    value.reset();
    if (has_value) read(reader, value.emplace());
  } else if constexpr (kIsVector<T>) {
    using Element = typename T::value_type;
    if constexpr (kIsPlain<Element>) {
      reader.get_array(value);
    } else {
      value.resize(reader.get_count(min_size<Element>()));
      for (Element& element : value) read(reader, element);
    }
  } else {
    static_assert(has_all_members<T>());
    for_each_member<T>([&](const auto& member) { read(reader, value.*member.pointer); });
  }
}

}  // namespace quire::wire
