// The caller: the program `tritonserver`, which holds the HTTP and gRPC front ends, or one of its libraries.
#pragma once

#include <dlfcn.h>
#include <link.h>

namespace quire::guard {

// Whether the program's own code lies at `address`, such as a return address.
inline bool is_in_program(const void* address) {
  Dl_info info{};
  // The program itself comes first in the list of what is loaded.
  static const void* const program = [] {
    const void* base = nullptr;
    dl_iterate_phdr(
        [](dl_phdr_info* object, size_t, void* found) {
          for (int i = 0; i < object->dlpi_phnum; ++i) {
            if (object->dlpi_phdr[i].p_type != PT_LOAD) continue;
            *static_cast<const void**>(found) =
                reinterpret_cast<const void*>(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
            break;
          }
          return 1;
        },
        &base);
    return base;
  }();
  return dladdr(address, &info) != 0 && info.dli_fbase == program;
}

}  // namespace quire::guard
