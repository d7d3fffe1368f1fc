// The function that a definition of ours stands before.
#pragma once

#include <dlfcn.h>

namespace quire::guard {

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace quire::guard

#define QUIRE_GUARD_EXPORT extern "C" __attribute__((visibility("default")))
