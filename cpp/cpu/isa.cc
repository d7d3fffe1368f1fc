#include <atomic>

#include "kernel_table.h"
#include "quire/cpu/runtime.h"
#include "quire/error.h"

namespace quire::cpu {
namespace {

std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables{portable_kernels()};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && avx2_kernels() != nullptr) tables.push_back(avx2_kernels());
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq");
  if (has_avx512 && avx512_kernels() != nullptr) tables.push_back(avx512_kernels());
#endif
  return tables;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{supported_tables().back()};
  return table;
}

}  // namespace

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

std::string cpu_isa() { return kernels().name; }

std::vector<std::string> supported_cpu_isas() {
  std::vector<std::string> names;
  for (const KernelTable* table : supported_tables()) names.emplace_back(table->name);
  return names;
}

void set_cpu_isa(const std::string& name) {
  std::string allowed;
  for (const KernelTable* table : supported_tables()) {
    if (name == table->name) {
      current().store(table, std::memory_order_relaxed);
      return;
    }
    allowed += (allowed.empty() ? "" : ", ") + std::string(table->name);
  }
  throw InvalidArgument("cpu_isa", "\"" + name + "\"", allowed + " (on this machine)");
}

}  // namespace quire::cpu
