// The type of a stream, as cuda_runtime_api.h declares it: what only declares or binds launch functions needs
// no CUDA toolkit.
#pragma once

typedef struct CUstream_st* cudaStream_t;
