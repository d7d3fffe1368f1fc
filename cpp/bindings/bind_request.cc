// The tensor `request` (quire/request_tensor.h) from Python values.
#include <pybind11/typing.h>

#include "bind_members.h"
#include "bindings.h"
#include "quire/request_tensor.h"

namespace quire::bindings {

namespace py = pybind11;

namespace {

using Fields = py::typing::Dict<py::str, py::object>;

py::bytes encode(const Fields& given) {
  RequestTensor tensor;
  uint64_t mask = 0;
  uint64_t bit = 1;
  size_t num_known = 0;
  for_each_field(tensor, [&]<class T>(const char* name, T& value) {
    if (given.contains(name)) {
      try {
        value = py::cast<T>(given[name]);
      } catch (const py::cast_error&) {
        throw InvalidArgument(name, std::string(py::repr(given[name])), "a value of the field's type");
      }
      mask |= bit;
      ++num_known;
    }
    bit <<= 1;
  });
  if (num_known < given.size()) {
    throw InvalidArgument("encode_request", "a name that no field has", "those of quire/request_tensor.h");
  }
  return encode_request(tensor, mask);
}

}  // namespace

void bind_request(py::module_& m) {
  m.def("encode_request", encode,
        "The tensor `request` of generation with these fields; their values are not checked.",
        py::arg("fields"));
}

}  // namespace quire::bindings
