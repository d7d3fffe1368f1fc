// Errors of the core. A caller's mistake is an InvalidArgument that names the field; a broken invariant of
// ours is an InternalError with file and line. The core never prints, aborts or exits.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace quire {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Message: "<field>: got <given>; allowed: <allowed>".
class InvalidArgument : public Error {
 public:
  InvalidArgument(const std::string& field, const std::string& given, const std::string& allowed)
      : Error(field + ": got " + given + "; allowed: " + allowed), field_(field) {}
  const std::string& field() const { return field_; }
  // This error of a field that its sender calls `name`.
  InvalidArgument renamed(const std::string& name) const { return {name, what() + field_.size()}; }

 private:
  InvalidArgument(const std::string& field, const char* rest) : Error(field + rest), field_(field) {}

  std::string field_;
};

class InternalError : public Error {
 public:
  using Error::Error;
};

namespace detail {
[[noreturn]] inline void check_failed(const char* what, const char* file, int line,
                                      const std::string& values) {
  std::ostringstream message;
  message << "internal error: " << what << " does not hold (" << file << ":" << line << ")";
  if (!values.empty()) message << ": " << values;
  throw InternalError(message.str());
}
}  // namespace detail

// QUIRE_CHECK(condition, "values that explain it: " << a << ", " << b)
#define QUIRE_CHECK(condition, values)                                                         \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      std::ostringstream quire_check_values;                                                   \
      quire_check_values << values;                                                            \
      ::quire::detail::check_failed(#condition, __FILE__, __LINE__, quire_check_values.str()); \
    }                                                                                          \
  } while (false)

}  // namespace quire
