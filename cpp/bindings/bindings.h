// The families of the Python module; module.cc lists them.
#pragma once

#include <pybind11/pybind11.h>

namespace quire::bindings {

void bind_core(pybind11::module_& m);          // EngineCore, TokenTable, errors; calls the next two
void bind_sampling(pybind11::module_& m);      // SamplingParams, FinishReason
void bind_batch(pybind11::module_& m);         // Batch, BatchLayout
void bind_request(pybind11::module_& m);       // encode_request
void bind_ops(pybind11::module_& m);           // CPU kernels on raw pointers
void bind_engine(pybind11::module_& m);        // EngineServer
void bind_model_config(pybind11::module_& m);  // check_model_config

}  // namespace quire::bindings
