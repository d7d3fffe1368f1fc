// Python's names of the GEMMs for few rows, for some and for many.
#include "bindings.h"
#include "quire/cuda/gemm.h"

namespace quire::bindings {

void bind_gemm(py::module_& m) {
  m.attr("SKINNY_GEMM_MAX_ROWS") = kSkinnyGemmMaxRows;
  m.attr("WIDENED_GEMM_MAX_ROWS") = kWidenedGemmMaxRows;
  const auto make_skinny = [](uintptr_t data, int64_t n, int64_t k, int dtype, bool silu_mul, int format,
                              uintptr_t scales, int32_t num_scales, uintptr_t zeros) {
    return cuda::make_skinny_gemm_weight(
        reinterpret_cast<const void*>(data), n, k, static_cast<DType>(dtype), silu_mul,
        {static_cast<WeightFormat>(format), reinterpret_cast<const void*>(scales), num_scales,
         reinterpret_cast<const uint16_t*>(zeros)});
  };
  py::class_<SkinnyGemmWeight>(m, SkinnyGemmWeight::kName, py::module_local())
      .def(py::init(make_skinny), py::kw_only(), py::arg("data"), py::arg("n"), py::arg("k"),
           py::arg("dtype"), py::arg("silu_mul") = false, py::arg("format") = 0, py::arg("scales") = 0,
           py::arg("num_scales") = 0, py::arg("zeros") = 0);
  def_settings<SkinnyGemmTuning>(m);
  def_kernel<cuda::launch_skinny_gemm>(m);

  const auto make_wide = [](uintptr_t data, int64_t n, int64_t k, int dtype, bool silu_mul, uintptr_t scale,
                            int32_t num_scales) {
    return cuda::make_wide_gemm_weight(reinterpret_cast<const void*>(data), n, k, static_cast<DType>(dtype),
                                       silu_mul, reinterpret_cast<const float*>(scale), num_scales);
  };
  py::class_<WideGemmWeight>(m, WideGemmWeight::kName, py::module_local())
      .def(py::init(make_wide), py::kw_only(), py::arg("data"), py::arg("n"), py::arg("k"), py::arg("dtype"),
           py::arg("silu_mul") = false, py::arg("scale") = 0, py::arg("num_scales") = 1);
  def_settings<WideGemmTuning>(m);
  def_kernel<cuda::launch_wide_gemm>(m);
  def_settings<SplitGemmTuning>(m);
  def_kernel<cuda::launch_split_gemm>(m);
  def_kernel<cuda::launch_widened_gemm>(m);
}

}  // namespace quire::bindings
