// CPU kernels on raw pointers, which quire/ops calls: a decode step of a small model makes dozens of these
// calls, and each costs about a microsecond.
#include <pybind11/stl.h>

#include <iterator>
#include <vector>

#include "bindings.h"
#include "bindings/kernels.h"
#include "quire/cpu/layers.h"
#include "quire/cpu/paged_attention.h"
#include "quire/cpu/rope_and_cache.h"
#include "quire/cpu/runtime.h"
#include "quire/cpu/sampling.h"

namespace quire::bindings {
namespace {

std::vector<int> four_bit_columns() {
  std::vector<int> columns;
  for (int i = 0; i < 32; ++i) columns.push_back(four_bit_column(i / 8, i % 8));
  return columns;
}

}  // namespace

void bind_ops(py::module_& m) {
  m.def("float8_columns",
        [] { return std::vector<int>(std::begin(kFloat8Columns), std::end(kFloat8Columns)); });
  m.def("four_bit_columns", &four_bit_columns);
  def_settings<PagedAttentionConfig>(m);
  def_kernel<cpu::paged_attention>(m, "cpu_");
  def_kernel<cpu::rope_and_cache>(m, "cpu_");
  def_kernel<cpu::norm>(m, "cpu_");
  def_kernel<cpu::activate>(m, "cpu_");
  def_kernel<cpu::scale_and_cap>(m, "cpu_");
  def_kernel<cpu::embedding>(m, "cpu_");
  def_kernel<cpu::sample>(m, "cpu_");
  def_kernel<cpu::token_counts>(m, "cpu_");
  def_kernel<cpu::logprobs>(m, "cpu_");

  m.def("cpu_isa", &cpu::cpu_isa);
  m.def("supported_cpu_isas", &cpu::supported_cpu_isas);
  m.def("set_cpu_isa", &cpu::set_cpu_isa, py::arg("name"));
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("num_threads"),
        py::call_guard<py::gil_scoped_release>());  // joins threads
}

}  // namespace quire::bindings
