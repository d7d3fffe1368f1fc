// The engine as a child process, and our end of the socket to it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

namespace quire::triton {

struct EngineCommand {
  std::string python;  // looked up on PATH
  std::string module;
  std::string config;  // path of model.json
};

// Owns the child: it has ended and been waited for when the destructor returns.
//
// The child inherits the environment, standard output and error, and one end of a socket; nothing else. It is
// told to go by the end of file that it reads when our end closes, so it also goes when this process is
// killed.
class EngineProcess {
 public:
  // Throws Error naming the program when it cannot be started.
  explicit EngineProcess(const EngineCommand& command);
  ~EngineProcess();
  EngineProcess(const EngineProcess&) = delete;
  EngineProcess& operator=(const EngineProcess&) = delete;

  int fd() const { return fd_; }  // non-blocking; -1 once closed
  pid_t pid() const { return pid_; }
  void close_socket();

  // How it ended ("exited with code 1", "was killed by signal 9 (Killed)"), or nothing while it runs.
  std::optional<std::string> poll_exit();
  // Sends a signal to the engine and the processes it started.
  void signal(int number) const;
  // Closes the socket, waits, then asks (SIGTERM), then insists (SIGKILL). Returns how it ended.
  std::string stop();

 private:
  int fd_ = -1;
  pid_t pid_ = -1;
  std::optional<std::string> exit_;
};

}  // namespace quire::triton
