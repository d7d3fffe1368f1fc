// Python classes from lists of members (quire/members.h).
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <tuple>
#include <utility>

#include "quire/members.h"
#include "quire/request.h"

namespace pybind11::detail {

// A pair of id and bias.
template <>
struct type_caster<quire::LogitBias> {
  using Pair = std::pair<int32_t, float>;
  PYBIND11_TYPE_CASTER(quire::LogitBias, make_caster<Pair>::name);

  bool load(handle source, bool convert) {
    make_caster<Pair> pair;
    if (!pair.load(source, convert)) return false;
    std::tie(value.token_id, value.bias) = cast_op<Pair>(pair);
    return true;
  }
  static handle cast(const quire::LogitBias& given, return_value_policy policy, handle parent) {
    return make_caster<Pair>::cast(Pair(given.token_id, given.bias), policy, parent);
  }
};

}  // namespace pybind11::detail

namespace quire::bindings {

// What Python sees of a value.
template <class T>
const T& to_python(const T& value) {
  return value;
}
inline const char* to_python(FinishReason reason) { return to_string(reason); }
inline uint32_t to_python(OpenText open_text) { return open_text.bits(); }
inline pybind11::typing::Dict<pybind11::str, pybind11::int_> to_python(const Usage& usage) {
  pybind11::typing::Dict<pybind11::str, pybind11::int_> numbers;
  for_each_member<Usage>([&](const auto& member) { numbers[member.name] = usage.*member.pointer; });
  return numbers;
}

// A read-only property for each member of `Struct`, which `Class` is or derives from.
template <class Struct, class Class>
void def_members(Class& bound) {
  for_each_member<Struct>([&]<class M>(const M& member) {
    if constexpr (M::kBinding != Binding::kNone) {
      const auto pointer = member.pointer;
      bound.def_property_readonly(
          member.name, [pointer](const typename Class::type& self) { return to_python(self.*pointer); });
    }
  });
}

// A constructor that takes the members as keywords.
template <class Struct, class Class>
void def_keywords(Class& bound) {
  const Struct defaults;
  const auto keyword = [&]<class M>(const M& member) {
    if constexpr (M::kBinding == Binding::kRequired) {
      return pybind11::arg(member.name);
    } else {
      return pybind11::arg(member.name) = defaults.*member.pointer;
    }
  };
  std::apply(
      [&]<class... M>(const M&... member) {
        bound.def(pybind11::init([](typename M::Type... value) {
                    return std::apply(
                        [&](const auto&... to) {
                          Struct made;
                          ((made.*to.pointer = std::move(value)), ...);
                          return made;
                        },
                        kMembers<Struct>);
                  }),
                  pybind11::kw_only(), keyword(member)...);
      },
      kMembers<Struct>);
}

}  // namespace quire::bindings
