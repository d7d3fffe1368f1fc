#include "child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "quire/error.h"

extern char** environ;

namespace quire::triton {

namespace {

using namespace std::chrono_literals;

constexpr int kChildFd = 3;              // the socket in the child
constexpr int kSettingsFd = 4;           // the settings in the child
constexpr int kFirstOwnFd = 16;          // our own descriptors that the child gets are above the child's
constexpr auto kStopPatience = 3s;       // to leave after the socket closed
constexpr auto kTerminatePatience = 2s;  // to leave after SIGTERM

std::string system_error(int error) { return std::strerror(error); }

// Owns a descriptor.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() {
    if (fd_ >= 0) close(fd_);
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// A descriptor from which `content` can be read, to be closed; -1 and errno where there is none.
int make_file_in_memory(const std::string& content) {
  const Fd made(memfd_create("settings", MFD_CLOEXEC));
  if (made.get() < 0) return -1;
  for (size_t done = 0; done < content.size();) {
    const ssize_t written = write(made.get(), content.data() + done, content.size() - done);
    if (written < 0 && errno != EINTR) return -1;
    if (written > 0) done += static_cast<size_t>(written);
  }
  if (lseek(made.get(), 0, SEEK_SET) < 0) return -1;
  return fcntl(made.get(), F_DUPFD_CLOEXEC, kFirstOwnFd);
}

// posix_spawn runs no fork handlers (gRPC and others register some) and needs no copy of the server's page
// tables.
class SpawnPlan {
 public:
  SpawnPlan(int socket, int settings) {  // settings: -1: none
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_adddup2(&actions_, socket, kChildFd);
    if (settings >= 0) posix_spawn_file_actions_adddup2(&actions_, settings, kSettingsFd);
    close_above(settings >= 0 ? kSettingsFd : kChildFd);

    // The server's threads may block or ignore signals; the child starts with defaults. Its own process
    // group keeps a Ctrl-C in the terminal from reaching it before the server has drained.
    posix_spawnattr_init(&attributes_);
    sigset_t signals;
    sigemptyset(&signals);
    posix_spawnattr_setsigmask(&attributes_, &signals);
    sigfillset(&signals);
    posix_spawnattr_setsigdefault(&attributes_, &signals);
    posix_spawnattr_setpgroup(&attributes_, 0);
    posix_spawnattr_setflags(&attributes_,
                             POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  SpawnPlan(const SpawnPlan&) = delete;
  SpawnPlan& operator=(const SpawnPlan&) = delete;

  // Returns an errno, 0 for success.
  int run(const std::vector<std::string>& arguments, pid_t& pid) const {
    std::vector<char*> argv;
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    return posix_spawnp(&pid, argv[0], &actions_, &attributes_, argv.data(), environ);
  }

 private:
  // Sockets and files of the server must not live on in the child.
  void close_above(int last_kept) {
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
    posix_spawn_file_actions_addclosefrom_np(&actions_, last_kept + 1);
#else
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", ignored)) {
      const int fd = std::atoi(entry.path().filename().c_str());
      if (fd > last_kept) posix_spawn_file_actions_addclose(&actions_, fd);
    }
#endif
  }

  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

std::string describe_exit(int status) {
  if (WIFSIGNALED(status)) {
    const int number = WTERMSIG(status);
    return "was killed by signal " + std::to_string(number) + " (" + strsignal(number) + ")";
  }
  return "exited with code " + std::to_string(WEXITSTATUS(status));
}

}  // namespace

ChildProcess::ChildProcess(const std::string& what, const std::string& python, const std::string& module,
                           const std::vector<std::string>& arguments,
                           const std::optional<std::string>& settings) {
  const Fd file(settings ? make_file_in_memory(*settings) : -1);
  if (settings && file.get() < 0) {
    throw Error("cannot hand " + what + " its settings: " + system_error(errno));
  }
  std::vector<std::string> command = {python, "-m", module};
  command.insert(command.end(), arguments.begin(), arguments.end());
  command.insert(command.end(), {"--fd", std::to_string(kChildFd)});
  if (settings) command.insert(command.end(), {"--settings-fd", std::to_string(kSettingsFd)});
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    throw Error("cannot make a socket for " + what + ": " + system_error(errno));
  }
  fcntl(fds[0], F_SETFL, O_NONBLOCK);
  const int error = SpawnPlan(fds[1], file.get()).run(command, pid_);
  close(fds[1]);
  if (error != 0) {
    close(fds[0]);
    throw Error("cannot start " + what + ": '" + python + "': " + system_error(error) +
                " (config.pbtxt: parameters: python, or environment QUIRE_PYTHON)");
  }
  fd_ = fds[0];
}

ChildProcess::~ChildProcess() {
  close_socket();
  if (poll_exit()) return;
  signal(SIGKILL);
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
}

void ChildProcess::close_socket() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

std::optional<std::string> ChildProcess::poll_exit() {
  if (exit_) return exit_;
  int status = 0;
  const pid_t ended = waitpid(pid_, &status, WNOHANG);
  if (ended == pid_) {
    exit_ = describe_exit(status);
  } else if (ended < 0 && errno != EINTR) {
    exit_ = "ended; its exit status is unknown (" + system_error(errno) + ")";
  }
  return exit_;
}

bool ChildProcess::is_stopped() const {
  // A stop is reported until it is collected; WNOWAIT leaves it there.
  siginfo_t info{};
  return !exit_ && waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
         info.si_pid == pid_;
}

void ChildProcess::signal(int number) const { kill(-pid_, number); }

std::string ChildProcess::stop() {
  close_socket();
  const auto wait_for_exit = [this](std::chrono::steady_clock::duration patience) {
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (!poll_exit() && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(10ms);
    return exit_.has_value();
  };
  if (!wait_for_exit(kStopPatience)) {
    signal(SIGTERM);
    if (!wait_for_exit(kTerminatePatience)) {
      signal(SIGKILL);
      wait_for_exit(kTerminatePatience);
    }
  }
  return exit_.value_or("does not end");
}

}  // namespace quire::triton
