// A process that tokenizes, and the protocol with it: python/quire/triton/tokenizer_worker.py is the other
// side.
//
// Every frame: u32 payload size, u32 type, payload. Numbers are little endian; a string is a u32 count and
// its bytes, a list a u32 count and its elements. A tensor: string name, u32 data type
// (TRITONSERVER_DataType), list of i64 sizes, string bytes.
//   server -> worker  kSettings: string folder of the model, list of (string, string) parameters of
//   config.pbtxt,
//                                string snapshot of the load; empty: the worker reads settings and tokenizer
//                     kRequest : i64 arrival_ns, list of tensors, list of parameters (string name, u8 type,
//                                string | i64 | u8 | f64), list of string names of the outputs that are asked
//                                for
//   worker -> server  kReady   : string snapshot, once, for the workers that come after this one
//                     kAnswer  : list of tensors
//                     kError   : u32 code (TRITONSERVER_Error_Code), string message; before kReady: why it
//                     cannot
//                                start
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "child_process.h"
#include "quire/error.h"

namespace quire::triton {

enum class TokenizerFrame : uint32_t { kSettings = 1, kRequest = 2, kReady = 3, kAnswer = 4, kError = 5 };

// Appends a frame's header; its size is filled in by end_frame().
void begin_frame(TokenizerFrame type, std::string& frame);
void end_frame(std::string& frame);

// The worker is gone; the message completes the sentence "the tokenizer's process ...".
class WorkerLost : public Error {
 public:
  using Error::Error;
};

// Owns the process, which is killed when this is destroyed. Used by one thread at a time.
class TokenizerWorker {
 public:
  // Called several times a second while the worker is awaited; false: give up.
  using Watch = std::function<bool()>;

  struct Answer {
    TokenizerFrame type;
    std::string payload;
  };

  // Throws Error when the process cannot be started.
  TokenizerWorker(const std::string& python, const std::string& module);

  // Whether the process runs and waits for a request.
  bool is_idle();
  // Sends a whole frame and returns the answer to it; nothing where `watch` gave up: then the worker is of no
  // further use, since its answer may still come. Throws WorkerLost.
  std::optional<Answer> exchange(std::string_view frame, const Watch& watch);

 private:
  std::optional<Answer> take_frame();
  void receive();
  [[noreturn]] void lose();

  ChildProcess process_;
  std::string in_;           // what has been received of the next frame
  bool is_waiting_ = false;  // an answer is still to come
};

}  // namespace quire::triton
