// Classification of a string output is an error instead of the server's end.
//
// A client may ask for the largest values of an output instead of all of them (`class_count` of tritonclient,
// the output parameter `classification`). The front ends of tritonserver 2.51 then divide by the size of the
// output's type, which is 0 for strings, and the process ends with SIGFPE. With a size of 1 they go on to the
// check that refuses the type by name, which later versions make first. Nowhere else do the front ends use
// the size of a string; everybody else gets the server's own answer.
#include <cstdint>

#include "next.h"
#include "program.h"

namespace {

constexpr int kTypeBytes = 13;  // TRITONSERVER_TYPE_BYTES

}  // namespace

QUIRE_GUARD_EXPORT uint32_t TRITONSERVER_DataTypeByteSize(int type) {
  using Function = uint32_t(int);
  static Function* const byte_size = quire::guard::next<Function>("TRITONSERVER_DataTypeByteSize");
  if (type == kTypeBytes && quire::guard::is_in_program(__builtin_return_address(0))) return 1;
  return byte_size(type);
}
