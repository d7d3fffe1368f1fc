// What other threads tell the generation thread. Any thread posts; the owner waits and takes everything at
// once.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "client_request.h"
#include "tokenizer_call.h"

namespace quire::triton {

// What a detokenizer says after it has dealt with a chunk.
struct Feedback {
  uint64_t request_id;
  bool is_cancelled = false;  // no one waits for this client_request any more
  std::string error;          // the chunk could not be decoded; empty: it was
  // The response waits for a busy HTTP thread; what acknowledges the chunk follows when it does not any more.
  bool is_waiting = false;
};

struct Mail {
  std::vector<std::unique_ptr<ClientRequest>> client_requests;
  std::vector<Feedback> feedback;
  std::vector<std::shared_ptr<TokenizerCall>> calls;
  bool stop = false;
  bool give_up = false;
};

class Mailbox {
 public:
  Mailbox();
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // add: adds to the mail; where it throws, it has added nothing. False, without a call: the mailbox is
  // closed.
  bool post(const std::function<void(Mail&)>& add);

  // Owner: sleeps until there is mail, `fd` (may be -1) has one of `events`, or the deadline passes; then
  // moves all mail into `mail`, whose vectors are reused. Returns the events of `fd`.
  short wait(int fd, short events, std::chrono::steady_clock::time_point deadline, Mail& mail);
  // Owner: the last look. False, and nothing has changed, while there are client_requests or calls in it.
  [[nodiscard]] bool close();

 private:
  std::mutex mutex_;
  Mail mail_;
  bool is_closed_ = false;
  // Then whoever posts first writes to the event. Posts to a busy owner cost no system call.
  bool is_owner_asleep_ = false;
  int event_fd_;
};

}  // namespace quire::triton
