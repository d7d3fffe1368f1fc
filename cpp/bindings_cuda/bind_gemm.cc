// Python's names of the GEMMs for few rows, for some and for many.
#include "bindings.h"
#include "quire/cuda/skinny_gemm.h"
#include "quire/cuda/split_gemm.h"
#include "quire/cuda/wide_gemm.h"

namespace quire::bindings {
namespace {

template <class Weight>
void def_weight(py::module_& m, const char* name,
                Weight (*make)(const void*, int64_t, int64_t, DType, bool)) {
  const auto init = [make](Address data, int64_t n, int64_t k, int dtype, bool silu_mul) {
    return make(taken<const void*>(data), n, k, taken<DType>(dtype), silu_mul);
  };
  py::class_<Weight>(m, name).def(py::init(init), py::arg("data"), py::arg("n"), py::arg("k"),
                                  py::arg("dtype"), py::arg("silu_mul") = false);
}

template <class Weight, class Params>
struct Gemm : Launch<Params> {
  Weight weight;
};

// The arguments of every GEMM; `rows`: what some take between bias and out, `more`: between overlaps and
// tuning.
template <class Weight, class Params, class Rows, class More>
void def_gemm(py::module_& m, const char* name, void (*launch)(const Weight&, const Params&, cudaStream_t),
              const Rows& rows, const More& more) {
  using P = Params;
  def_kernel<Gemm<Weight, P>>(
      m, name, [launch](const Gemm<Weight, P>& given) { launch(given.weight, given, static_cast<cudaStream_t>(given.stream)); },
      fields(field<&Gemm<Weight, P>::weight>("weight"), field<&P::num_rows>("num_rows"), field<&P::x>("x"),
             field<&P::stride_x>("stride_x"), field<&P::bias>("bias"), rows, field<&P::out>("out"),
             field<&P::stride_out>("stride_out"), stream<P>(), field<&P::overlaps>("overlaps", true), more,
             field<&P::tuning>("tuning", {})));
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.attr("SKINNY_GEMM_MAX_ROWS") = cuda::kSkinnyGemmMaxRows;
  def_weight(m, "SkinnyGemmWeight", cuda::make_skinny_gemm_weight);
  using Few = cuda::SkinnyGemmTuning;
  def_settings<Few>(m, "SkinnyGemmTuning",
                    fields(field<&Few::parts>("parts", 0), field<&Few::num_blocks>("num_blocks", 0),
                           field<&Few::blocks_per_sm>("blocks_per_sm", 0),
                           field<&Few::trigger>("trigger", -1), field<&Few::in_flight>("in_flight", 0)));
  using Skinny = cuda::SkinnyGemmParams;
  def_gemm(m, "skinny_gemm", cuda::launch_skinny_gemm,
           fields(field<&Skinny::rows>("rows"), field<&Skinny::num_x_rows>("num_x_rows")),
           field<&Skinny::is_invariant>("is_invariant", false));

  def_weight(m, "WideGemmWeight", cuda::make_wide_gemm_weight);
  using Many = cuda::WideGemmTuning;
  def_settings<Many>(m, "WideGemmTuning",
                     fields(field<&Many::pair>("pair", -1), field<&Many::group>("group", 0),
                            field<&Many::columns>("columns", 0), field<&Many::halves>("halves", -1)));
  def_gemm(m, "wide_gemm", cuda::launch_wide_gemm, fields(), fields());

  using Some = cuda::SplitGemmTuning;
  def_settings<Some>(m, "SplitGemmTuning",
                     fields(field<&Some::parts>("parts", 0), field<&Some::columns>("columns", 0),
                            field<&Some::rows>("rows", 0)));
  def_gemm(m, "split_gemm", cuda::launch_split_gemm, fields(), fields());
}

}  // namespace quire::bindings
