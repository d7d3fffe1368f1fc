// A Python module as a child process, and our end of the socket to it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace quire::triton {

// Owns the child: it has ended and been waited for when the destructor returns.
//
// The child inherits the environment, standard output and error, one end of a socket, and perhaps a file in
// memory with settings; nothing else. It is told to go by the end of file that it reads when our end closes,
// so it also goes when this process is killed.
class ChildProcess {
 public:
  // Runs `python -m module arguments... --fd N`, with `--settings-fd M` where there are settings, which the
  // child reads there; python is looked up on PATH. what: "the engine", for messages. Throws Error naming the
  // program when it cannot be started.
  ChildProcess(const std::string& what, const std::string& python, const std::string& module,
               const std::vector<std::string>& arguments,
               const std::optional<std::string>& settings = std::nullopt);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  int fd() const { return fd_; }  // non-blocking; -1 once closed
  pid_t pid() const { return pid_; }
  void close_socket();

  // How it ended ("exited with code 1", "was killed by signal 9 (Killed)"), or nothing while it runs.
  std::optional<std::string> poll_exit();
  // Whether a signal (SIGSTOP, SIGTSTP) has stopped it.
  bool is_stopped() const;
  // Sends a signal to the child and the processes it started.
  void signal(int number) const;
  // Closes the socket, waits, then asks (SIGTERM), then insists (SIGKILL). Returns how it ended.
  std::string stop();

 private:
  int fd_ = -1;
  pid_t pid_ = -1;
  std::optional<std::string> exit_;
};

}  // namespace quire::triton
