// Kernels as Python functions: each argument is a field of the kernel's Params, under its name or another.
// Pointers come as integers, 0 for null, and enums as their numbers; the caller has checked shapes, types and
// layout, and keeps the tensors alive.
//
// Every call releases the GIL: kernels touch no Python object, and may run for long or wait for a driver.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

namespace quire::bindings {

namespace py = pybind11;

using Address = uintptr_t;
using Release = py::call_guard<py::gil_scoped_release>;

// What Python gives for a field of type T.
template <class T>
struct Given {
  using Type = T;
};
template <class T>
struct Given<T*> {
  using Type = Address;
};
template <class T>
  requires std::is_enum_v<T>
struct Given<T> {
  using Type = int;
};

template <class T>
T taken(const typename Given<T>::Type& given) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(given);
  } else if constexpr (std::is_enum_v<T>) {
    return static_cast<T>(given);
  } else {
    return given;
  }
}

template <class Member>
struct TypeOf;
template <class T, class Params>
struct TypeOf<T Params::*> {
  using Type = T;
};

// A field of Params and what Python calls it. Arg: py::arg, or py::arg_v where there is a default.
template <auto kMember, class Arg>
struct Field {
  using Type = typename TypeOf<decltype(kMember)>::Type;
  using GivenType = typename Given<Type>::Type;

  template <class Params>
  static void set(Params& params, const GivenType& given) {
    params.*kMember = taken<Type>(given);
  }

  Arg arg;
};

template <auto kMember>
auto field(const char* name) {
  return std::tuple{Field<kMember, py::arg>{py::arg(name)}};
}

template <auto kMember>
auto field(const char* name, typename Field<kMember, py::arg>::GivenType value) {
  return std::tuple{Field<kMember, py::arg_v>{py::arg(name) = value}};
}

// One list out of several.
template <class... Lists>
auto fields(Lists... lists) {
  return std::tuple_cat(std::move(lists)...);
}

// m.name(each field's argument, in order): fills a Params and calls launch(params).
template <class Params, class Launch, class... Fields>
void def_kernel(py::module_& m, const char* name, Launch launch, const std::tuple<Fields...>& list) {
  const auto call = [launch](const typename Fields::GivenType&... given) {
    Params params;
    (Fields::set(params, given), ...);
    launch(params);
  };
  std::apply([&](const Fields&... each) { m.def(name, call, Release(), each.arg...); }, list);
}

}  // namespace quire::bindings
