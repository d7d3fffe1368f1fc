// What all CPU kernels share: which instruction set they use and how many threads.
//
// The instruction set is chosen once, from cpuid, at the first kernel call. Results are bitwise the same for
// every number of threads and whatever else is in the batch; they differ in rounding between instruction
// sets.
#pragma once

#include <string>
#include <vector>

namespace quire::cpu {

// "portable", "avx2" or "avx512": the one in use.
std::string cpu_isa();

// The ones that this machine can run, slowest first.
std::vector<std::string> supported_cpu_isas();

// Forces one, for tests and measurements. Not to be called while a kernel runs. Throws InvalidArgument that
// names the supported ones.
void set_cpu_isa(const std::string& name);

// Threads that share one kernel call, the caller's own included; 1 until set. The others sleep while there is
// no work. Throws InvalidArgument when num_threads is not in [1, 256].
void set_num_threads(int num_threads);
int num_threads();

}  // namespace quire::cpu
