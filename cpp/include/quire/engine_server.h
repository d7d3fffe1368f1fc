// The engine's side of the socket: takes requests in and sends outputs out while steps run.
//
//   reader thread   frames -> decoded requests -> inbox          waits in read()
//   owner thread    wait_for_work(): inbox -> core; publish(): the core's outputs -> frames
//   writer thread   only what the socket did not take at once    waits in send()
//
// The core has one owner, the thread that calls wait_for_work() and publish(); neither of the other two
// touches it. No thread here ever needs the Python interpreter. An idle engine sleeps in wait_for_work().
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "quire/engine_core.h"
#include "quire/wire.h"

namespace quire {

class EngineServer {
 public:
  // Owns `fd`, a connected stream socket, from here on, also when it throws. `core` must outlive the server.
  EngineServer(EngineCore& core, int fd);
  // Sends what is already published, unless the client does not read it for some seconds, then closes.
  ~EngineServer();
  EngineServer(const EngineServer&) = delete;
  EngineServer& operator=(const EngineServer&) = delete;

  // Tells the client that requests can be served: the core's limits and token table. Once, before the first
  // step.
  // defaults: what a request that does not say otherwise gets; the client applies them. vocabulary, loaded,
  // cache_config: as in wire::ReadyFrame.
  void send_ready(const std::string& model, const SamplingParams& defaults, const std::string& vocabulary,
                  const std::string& loaded, const std::map<std::string, std::string>& cache_config);

  // Sleeps until the core has work or intake arrived, hands the intake to the core and returns true. False
  // when the client is gone or stop() was called. Throws Error when the client broke the protocol. A request
  // that the core refuses ends with kError and the core's message; the others are not affected.
  bool wait_for_work();

  // Sends the core's outputs(): releases, and the counters when they changed. Once after each update() or
  // take_outputs() of the core. Never waits for the client.
  void publish();

  // Makes wait_for_work() return false, now and from then on. From any thread.
  void stop();

 private:
  void read_frames();
  void write_frames();
  void enqueue(std::string_view frames);
  void apply(wire::RequestsFrame& frame);

  EngineCore& core_;
  const int fd_;

  std::mutex mutex_;                        // guards what follows
  std::condition_variable intake_arrived_;  // inbox_, client_gone_, stopping_, protocol_error_
  std::condition_variable output_arrived_;  // outbox_, closing_
  std::condition_variable drained_;         // outbox_ and writing_ became empty and false
  std::vector<wire::RequestsFrame> inbox_;
  std::string outbox_;    // whole frames, or the rest of one that the socket took in part
  bool writing_ = false;  // the writer thread is sending: no byte may overtake it
  bool client_gone_ = false;
  bool stopping_ = false;
  bool closing_ = false;
  std::string protocol_error_;

  // Owner thread only.
  std::vector<wire::RequestsFrame> taken_;
  std::string frame_;  // encoded here, reused
  EngineStats published_;
  bool has_published_ = false;

  std::thread reader_;
  std::thread writer_;
};

// For an engine that cannot start: the client gets the message instead of kReady. Does not close `fd`.
// Returns whether the client got it.
bool send_start_error(int fd, std::string_view message);

}  // namespace quire
