// The members of a struct, listed once beside its definition: kMembers<Struct>. The wire's codec, the Python
// class and whatever else walks a struct come of this list.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

namespace quire {

// What Python has of a member.
enum class Binding {
  kOptional,  // a property; a keyword of the constructor, which may be left out
  kRequired,  // a property; a keyword that must be given
  kNone,      // nothing: an index into the frame that the struct travels in
};

template <class Owner, class T, Binding kBindingOf = Binding::kOptional>
struct Member {
  using Type = T;
  static constexpr Binding kBinding = kBindingOf;
  const char* name;
  T Owner::* pointer;
};

template <Binding kBinding = Binding::kOptional, class Owner, class T>
constexpr Member<Owner, T, kBinding> member(const char* name, T Owner::* pointer) {
  return {name, pointer};
}

// Specialized for each struct that has a list.
template <class Struct>
inline constexpr std::tuple<> kMembers;

// Whether kMembers<Struct> has all members of the struct, in the order of their declaration: it is built of
// exactly these types, and of no more.
template <class Struct>
constexpr bool has_all_members() {
  return std::apply(
      []<class... M>(const M&...) {
        return requires { Struct{std::declval<typename M::Type>()...}; } &&
               !requires { Struct{std::declval<typename M::Type>()..., {}}; };
      },
      kMembers<Struct>);
}

// Calls visit(member) for each member.
template <class Struct, class Visit>
constexpr void for_each_member(Visit&& visit) {
  std::apply([&](const auto&... member) { (visit(member), ...); }, kMembers<Struct>);
}

}  // namespace quire
