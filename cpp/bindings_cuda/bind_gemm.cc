// Python's names of the GEMMs for few rows, for some and for many.
#include "bindings.h"
#include "quire/cuda/skinny_gemm.h"
#include "quire/cuda/split_gemm.h"
#include "quire/cuda/wide_gemm.h"

namespace quire::bindings {
namespace {

cuda::SkinnyGemmWeight make_weight(Address data, int64_t n, int64_t k, int dtype, bool silu_mul) {
  return cuda::make_skinny_gemm_weight(at<void>(data), n, k, static_cast<cuda::DType>(dtype), silu_mul);
}

cuda::SkinnyGemmTuning make_tuning(int32_t parts, int32_t num_blocks, int32_t blocks_per_sm, int32_t trigger,
                                   int32_t in_flight) {
  cuda::SkinnyGemmTuning tuning;
  tuning.parts = parts;
  tuning.num_blocks = num_blocks;
  tuning.blocks_per_sm = blocks_per_sm;
  tuning.trigger = trigger;
  tuning.in_flight = in_flight;
  return tuning;
}

void skinny_gemm(const cuda::SkinnyGemmWeight& weight, int32_t num_rows, Address x, int64_t stride_x,
                 Address bias, Address rows, int32_t num_x_rows, Address out, int64_t stride_out,
                 Address stream, bool overlaps, bool is_invariant, const cuda::SkinnyGemmTuning& tuning) {
  cuda::SkinnyGemmParams p;
  p.num_rows = num_rows;
  p.x = at<void>(x);
  p.stride_x = stride_x;
  p.bias = at<void>(bias);
  p.rows = at<int32_t>(rows);
  p.num_x_rows = num_x_rows;
  p.out = at<void>(out);
  p.stride_out = stride_out;
  p.overlaps = overlaps;
  p.is_invariant = is_invariant;
  p.tuning = tuning;
  cuda::launch_skinny_gemm(weight, p, stream_at(stream));
}

cuda::WideGemmWeight make_wide_weight(Address data, int64_t n, int64_t k, int dtype, bool silu_mul) {
  return cuda::make_wide_gemm_weight(at<void>(data), n, k, static_cast<cuda::DType>(dtype), silu_mul);
}

cuda::WideGemmTuning make_wide_tuning(int32_t pair, int32_t group, int32_t columns, int32_t halves) {
  cuda::WideGemmTuning tuning;
  tuning.pair = pair;
  tuning.group = group;
  tuning.columns = columns;
  tuning.halves = halves;
  return tuning;
}

cuda::SplitGemmTuning make_split_tuning(int32_t parts, int32_t columns, int32_t rows) {
  cuda::SplitGemmTuning tuning;
  tuning.parts = parts;
  tuning.columns = columns;
  tuning.rows = rows;
  return tuning;
}

// The GEMMs for some and for many rows have the same weights and arguments.
template <class Params, auto kLaunch>
void gemm(const cuda::WideGemmWeight& weight, int32_t num_rows, Address x, int64_t stride_x, Address bias,
          Address out, int64_t stride_out, Address stream, bool overlaps,
          const decltype(Params::tuning)& tuning) {
  Params p;
  p.num_rows = num_rows;
  p.x = at<void>(x);
  p.stride_x = stride_x;
  p.bias = at<void>(bias);
  p.out = at<void>(out);
  p.stride_out = stride_out;
  p.overlaps = overlaps;
  p.tuning = tuning;
  kLaunch(weight, p, stream_at(stream));
}

template <class Params, auto kLaunch>
void def_gemm(py::module_& m, const char* name) {
  m.def(name, &gemm<Params, kLaunch>, py::arg("weight"), py::arg("num_rows"), py::arg("x"),
        py::arg("stride_x"), py::arg("bias"), py::arg("out"), py::arg("stride_out"), py::arg("stream"),
        py::arg("overlaps") = true, py::arg("tuning") = decltype(Params::tuning)(), Release());
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.attr("SKINNY_GEMM_MAX_ROWS") = cuda::kSkinnyGemmMaxRows;
  py::class_<cuda::SkinnyGemmWeight>(m, "SkinnyGemmWeight")
      .def(py::init(&make_weight), py::arg("data"), py::arg("n"), py::arg("k"), py::arg("dtype"),
           py::arg("silu_mul") = false);
  py::class_<cuda::SkinnyGemmTuning>(m, "SkinnyGemmTuning")
      .def(py::init(&make_tuning), py::kw_only(), py::arg("parts") = 0, py::arg("num_blocks") = 0,
           py::arg("blocks_per_sm") = 0, py::arg("trigger") = -1, py::arg("in_flight") = 0);
  m.def("skinny_gemm", &skinny_gemm, py::arg("weight"), py::arg("num_rows"), py::arg("x"),
        py::arg("stride_x"), py::arg("bias"), py::arg("rows"), py::arg("num_x_rows"), py::arg("out"),
        py::arg("stride_out"), py::arg("stream"), py::arg("overlaps") = true, py::arg("is_invariant") = false,
        py::arg("tuning") = cuda::SkinnyGemmTuning(), Release());

  py::class_<cuda::WideGemmWeight>(m, "WideGemmWeight")
      .def(py::init(&make_wide_weight), py::arg("data"), py::arg("n"), py::arg("k"), py::arg("dtype"),
           py::arg("silu_mul") = false);
  py::class_<cuda::WideGemmTuning>(m, "WideGemmTuning")
      .def(py::init(&make_wide_tuning), py::kw_only(), py::arg("pair") = -1, py::arg("group") = 0,
           py::arg("columns") = 0, py::arg("halves") = -1);
  def_gemm<cuda::WideGemmParams, cuda::launch_wide_gemm>(m, "wide_gemm");

  py::class_<cuda::SplitGemmTuning>(m, "SplitGemmTuning")
      .def(py::init(&make_split_tuning), py::kw_only(), py::arg("parts") = 0, py::arg("columns") = 0,
           py::arg("rows") = 0);
  def_gemm<cuda::SplitGemmParams, cuda::launch_split_gemm>(m, "split_gemm");
}

}  // namespace quire::bindings
