// The members of a struct, listed once beside its definition: kMembers<Struct>. The wire's codec, the Python
// class and whatever else walks a struct come of this list.
#pragma once

#include <tuple>
#include <type_traits>
#include <utility>

// QUIRE_MEMBERS(Struct, QUIRE_REQUIRED(a, b), QUIRE_OPTIONAL(c, d)): kMembers<Struct> by their names alone,
// in the order of their declaration. QUIRE_UNBOUND: those that Python has not (Binding::kNone).
#define QUIRE_MEMBERS(Struct, ...)              \
  template <>                                   \
  inline constexpr auto kMembers<Struct> = [] { \
    using S = Struct;                           \
    return std::tuple{__VA_ARGS__};             \
  }();                                          \
  static_assert(has_all_members<Struct>())
#define QUIRE_REQUIRED(...) QUIRE_EACH(QUIRE_REQUIRED_MEMBER, __VA_ARGS__)
#define QUIRE_OPTIONAL(...) QUIRE_EACH(QUIRE_OPTIONAL_MEMBER, __VA_ARGS__)
#define QUIRE_UNBOUND(...) QUIRE_EACH(QUIRE_UNBOUND_MEMBER, __VA_ARGS__)
#define QUIRE_REQUIRED_MEMBER(name) member<Binding::kRequired>(#name, &S::name)
#define QUIRE_OPTIONAL_MEMBER(name) member(#name, &S::name)
#define QUIRE_UNBOUND_MEMBER(name) member<Binding::kNone>(#name, &S::name)
// macro(a), macro(b), ...: QUIRE_NEXT is no macro within itself, so it puts off its next step to another scan
// of the preprocessor. There are 64, enough for as many members.
#define QUIRE_EACH(macro, ...) QUIRE_SCAN64(QUIRE_NEXT(macro, __VA_ARGS__))
#define QUIRE_NEXT(macro, name, ...) \
  macro(name) __VA_OPT__(, QUIRE_AGAIN QUIRE_NO_ARGUMENTS(macro, __VA_ARGS__))
#define QUIRE_AGAIN() QUIRE_NEXT
#define QUIRE_NO_ARGUMENTS ()
#define QUIRE_SCAN64(...) QUIRE_SCAN16(QUIRE_SCAN16(QUIRE_SCAN16(QUIRE_SCAN16(__VA_ARGS__))))
#define QUIRE_SCAN16(...) QUIRE_SCAN4(QUIRE_SCAN4(QUIRE_SCAN4(QUIRE_SCAN4(__VA_ARGS__))))
#define QUIRE_SCAN4(...) QUIRE_SCAN(QUIRE_SCAN(QUIRE_SCAN(QUIRE_SCAN(__VA_ARGS__))))
#define QUIRE_SCAN(...) __VA_ARGS__

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
  using Pointer = T Owner::*;
  static constexpr Binding kBinding = kBindingOf;
  const char* name;
  Pointer pointer;
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
