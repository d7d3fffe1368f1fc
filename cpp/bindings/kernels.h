// Kernels as Python functions: name(*, member=value, ..., stream=0), a keyword for each member of the
// kernel's Params. Pointers and the stream come as integers, 0 for null, and enums as their numbers; the
// caller has checked shapes, types and layout, and keeps the tensors alive until the stream has passed the
// call. On the CPU, which has no streams, stream is ignored.
//
// Not pybind11's functions, which take three times as long to match names as a small kernel's call may: a
// decode step of a small model on the CPU makes dozens of calls, each of about a microsecond. A name that
// Python code spells is one object wherever it stands, so names match by address, and at the first try where
// the call follows the order of the members.
//
// Every call releases the GIL: kernels touch no Python object, and may run for long or wait for a driver.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "bindings/bind_members.h"
#include "quire/members.h"

namespace quire::bindings {

namespace py = pybind11;

// The arguments of a launch.
template <class Params>
struct Launch : Params {
  void* stream = nullptr;  // cudaStream_t
};

// Whether a T is given as an object of a bound class; else as a number.
template <class T>
constexpr bool is_object() {
  return std::is_class_v<std::remove_cv_t<std::remove_pointer_t<T>>>;
}

template <class T>
T from_python(PyObject* given) {
  if constexpr (is_object<T>()) {
    return py::cast<T>(py::handle(given));
  } else if constexpr (std::is_same_v<T, bool>) {
    return PyObject_IsTrue(given) == 1;
  } else if constexpr (std::is_floating_point_v<T>) {
    return static_cast<T>(PyFloat_AsDouble(given));
  } else if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(PyLong_AsUnsignedLongLong(given));
  } else if constexpr (std::is_enum_v<T>) {
    return static_cast<T>(from_python<std::underlying_type_t<T>>(given));
  } else {
    const long long value = PyLong_AsLongLong(given);
    if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) {
      PyErr_Format(PyExc_OverflowError, "got %lld; allowed: %d bits", value, 8 * static_cast<int>(sizeof(T)));
    }
    return static_cast<T>(value);
  }
}

// Sets the members of a Params from the keywords of a call.
template <class Params>
class Keywords {
  static constexpr size_t kSize = std::tuple_size_v<decltype(kMembers<Params>)>;
  static_assert(kSize < 64);

 public:
  Keywords() {
    size_t i = 0;
    for_each_member<Params>(
        [&](const auto& member) { names_[i++] = PyUnicode_InternFromString(member.name); });
    names_[i] = PyUnicode_InternFromString("stream");
  }

  // Throws a Python error that names the kernel.
  void set(Launch<Params>& params, PyObject* const* values, Py_ssize_t num_positional,
           PyObject* names) const {
    if (num_positional != 0) throw py::type_error(std::string(Params::kName) + ": takes keywords only");
    uint64_t given = 0;
    size_t at = 0;
    const Py_ssize_t num_given = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    for (Py_ssize_t i = 0; i < num_given; ++i) {
      at = find(PyTuple_GET_ITEM(names, i), at);
      kSet[at](params, values[i]);
      if (PyErr_Occurred() != nullptr) {
        py::raise_from(PyExc_TypeError, (std::string(Params::kName) + ": " + text(names_[at])).c_str());
        throw py::error_already_set();
      }
      given |= uint64_t{1} << at;
      ++at;
    }
    if ((given & kRequired) == kRequired) return;
    for (size_t i = 0; i < kSize; ++i) {
      if ((kRequired & ~given) >> i & 1) {
        throw py::type_error(std::string(Params::kName) + ": " + text(names_[i]) + " is missing");
      }
    }
  }

 private:
  using Set = void (*)(Launch<Params>&, PyObject*);

  template <size_t... I>
  static constexpr std::array<Set, kSize + 1> setters(std::index_sequence<I...>) {
    return {[](Launch<Params>& params, PyObject* given) {
              constexpr auto member = std::get<I>(kMembers<Params>);
              params.*member.pointer = from_python<typename decltype(member)::Type>(given);
            }...,
            [](Launch<Params>& params, PyObject* given) { params.stream = from_python<void*>(given); }};
  }
  static constexpr std::array<Set, kSize + 1> kSet = setters(std::make_index_sequence<kSize>());

  static constexpr uint64_t kRequired = [] {
    uint64_t required = 0, bit = 1;
    for_each_member<Params>([&]<class M>(const M&) {
      if (M::kBinding == Binding::kRequired) required |= bit;
      bit <<= 1;
    });
    return required;
  }();

  static std::string text(PyObject* name) { return PyUnicode_AsUTF8(name); }

  // The place of `name`, which is `likely` in most calls.
  size_t find(PyObject* name, size_t likely) const {
    for (size_t i = 0; i <= kSize; ++i) {
      const size_t at = (likely + i) % (kSize + 1);
      if (names_[at] == name) return at;
    }
    for (size_t at = 0; at <= kSize; ++at) {  // a name that was put together at run time
      if (PyUnicode_Compare(names_[at], name) == 0) return at;
    }
    throw py::type_error(std::string(Params::kName) + ": has no " + text(name));
  }

  std::array<PyObject*, kSize + 1> names_;  // as long as the process
};

template <class T>
std::string python_type() {
  using Class = std::remove_cv_t<std::remove_pointer_t<T>>;
  if constexpr (is_object<T>()) {
    return Class::kName;
  } else if constexpr (std::is_same_v<T, bool>) {
    return "bool";
  } else {
    return std::is_floating_point_v<T> ? "float" : "int";
  }
}

// A value as Python code says it.
template <class T>
std::string python_value(const T& value) {
  if constexpr (is_object<T>()) {
    return "...";
  } else if constexpr (std::is_pointer_v<T>) {
    return "0";
  } else {
    return py::repr(py::cast(static_cast<std::conditional_t<std::is_enum_v<T>, int, T>>(value)));
  }
}

// "*, x: int, residual: int = 0": the members of a struct as the keywords of a Python function.
template <class Struct>
std::string keywords() {
  std::string text = "*";
  for_each_member<Struct>([&, defaults = Struct()]<class M>(const M& member) {
    text += std::string(", ") + member.name + ": " + python_type<typename M::Type>();
    if (M::kBinding != Binding::kRequired) text += " = " + python_value(defaults.*member.pointer);
  });
  return text;
}

template <class Params>
std::string kernel_signature() {
  return std::string(Params::kName) + "(" + keywords<Params>() + ", stream: int = 0) -> None";
}

template <auto kRun>
struct Kernel;

// On the CPU.
template <class P, void (*kRun)(const P&)>
struct Kernel<kRun> {
  using Params = P;
  static void run(const Launch<P>& given) { kRun(given); }
};

// On a stream.
template <class P, class Stream, void (*kRun)(const P&, Stream)>
struct Kernel<kRun> {
  using Params = P;
  static void run(const Launch<P>& given) { kRun(given, static_cast<Stream>(given.stream)); }
};

// A call from Python: a PyCFunctionFastWithKeywords, as CPython 3.13 named it.
template <auto kRun>
PyObject* call_kernel(PyObject*, PyObject* const* values, Py_ssize_t num_positional, PyObject* names) {
  using Params = typename Kernel<kRun>::Params;
  static const Keywords<Params> keywords;
  try {
    Launch<Params> params;
    keywords.set(params, values, num_positional, names);
    py::gil_scoped_release release;
    Kernel<kRun>::run(params);
  } catch (...) {
    py::detail::try_translate_exceptions();
    return nullptr;
  }
  Py_RETURN_NONE;
}

// m.<prefix><name of the Params>
template <auto kRun>
void def_kernel(py::module_& m, const std::string& prefix = "") {
  using Params = typename Kernel<kRun>::Params;
  static const std::string name = prefix + Params::kName, doc = prefix + kernel_signature<Params>();
  static PyMethodDef definition = {};
  definition.ml_name = name.c_str();
  definition.ml_meth = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_kernel<kRun>));
  definition.ml_flags = METH_FASTCALL | METH_KEYWORDS;
  definition.ml_doc = doc.c_str();
  m.add_object(name.c_str(), py::reinterpret_steal<py::object>(
                                 PyCFunction_NewEx(&definition, nullptr, m.attr("__name__").ptr())));
}

// m.<name of the struct>: a class made of its members by keyword. _core and _cuda may have one each.
template <class Settings>
void def_settings(py::module_& m) {
  py::class_<Settings> bound(m, Settings::kName, py::module_local());
  def_keywords<Settings>(bound);
}

}  // namespace quire::bindings
