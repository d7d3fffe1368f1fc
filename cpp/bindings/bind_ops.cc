// CPU kernels on raw pointers. quire/ops.py is the one caller: it has checked shapes, types and layout, and
// gives the arguments by position, for a decode step of a small model makes dozens of these calls and each
// costs about a microsecond.
#include <pybind11/stl.h>

#include "bindings.h"
#include "bindings/kernel_fields.h"
#include "bindings/kernels.h"
#include "quire/cpu/layers.h"
#include "quire/cpu/logprobs.h"
#include "quire/cpu/paged_attention.h"
#include "quire/cpu/rope_and_cache.h"
#include "quire/cpu/runtime.h"
#include "quire/cpu/sample.h"
#include "quire/cpu/token_counts.h"

namespace quire::bindings {
namespace {

template <class Params, class List>
void def(py::module_& m, const char* name, void (*run)(const Params&), const List& list) {
  def_kernel<Params>(m, name, run, list);
}

}  // namespace

void bind_ops(py::module_& m) {
  def_settings<PagedAttentionConfig>(m);
  def_kernel<cpu::paged_attention>(m, "cpu_");
  def_kernel<cpu::rope_and_cache>(m, "cpu_");
  def_kernel<cpu::rms_norm>(m, "cpu_");
  def_kernel<cpu::silu_mul>(m, "cpu_");
  def_kernel<cpu::embedding>(m, "cpu_");
  using Sample = cpu::SampleParams;
  def(m, "cpu_sample", cpu::sample,
      fields(sample_fields<Sample>(), sample_edit_fields<Sample>(),
             field<&Sample::sample_rows>("sample_rows", 0)));
  def(m, "cpu_token_counts", cpu::token_counts, token_counts_fields<cpu::TokenCountsParams>());
  def(m, "cpu_logprobs", cpu::logprobs, logprobs_fields<cpu::LogprobsParams>());

  m.def("cpu_isa", &cpu::cpu_isa);
  m.def("supported_cpu_isas", &cpu::supported_cpu_isas);
  m.def("set_cpu_isa", &cpu::set_cpu_isa, py::arg("name"));
  m.def("num_threads", &cpu::num_threads);
  m.def("set_num_threads", &cpu::set_num_threads, py::arg("num_threads"), Release());  // joins threads
}

}  // namespace quire::bindings
