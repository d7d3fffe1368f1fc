// Role generation: a loaded model with its engine and its open requests.
//
// Threads, in one place:
//   The generation thread owns the client_requests, the engine client and the metrics. It alone sends
//   responses of this model. It holds no lock while it does: in an ensemble, sending a response runs the
//   scheduling of the next step in the sending thread.
//
//   Any other thread (Triton's, in execute(); a detokenizer's) only posts to the mailbox, or reads
//   model_info().
//
// Flow: at most one chunk per stream is outstanding when the request says `acknowledge`; what the engine
// releases meanwhile is merged into the next. So a slow reader slows nobody else, and chunks of a stream
// cannot overtake each other however many detokenizers run.
//
// Errors: Triton 2.51 never ends an ensemble's request whose step failed while another of its steps was
// running (later versions do). So in an ensemble only generation reports errors, those of the detokenizer
// included, and only when no chunk is outstanding.
//
// Cancellation: a request called directly, or to a model of role unary, has its own flag, looked at every few
// milliseconds, also while a tokenizer works on it. In an ensemble that flag never comes; but the step that
// follows is marked, so its detokenizer says so in its feedback. A stream that is silent is probed, for the
// same reason. What Triton does not know, no backend can: its HTTP front end does not read a connection
// between the request and the first response, so a client of /generate that goes away is not noticed.
//
// Deadlines: the engine keeps them. Where it does not, because it hangs, the generation thread does, a little
// later.
//
// UnaryResponse: of a request with several prompts only so many are with the engine at a time, see
// prompt_turns.h.
//
// End: unloading waits for open requests, as Triton waits for those of an ensemble; give_up() ends the wait,
// and so does a server that is ending, see exit_watch.h. Once that has stopped its models, nothing passes
// through an ensemble any more, so those requests end at once.
//
// Exceptions: none leaves the generation thread. What was open when one came is answered with an error.
#pragma once

#include <atomic>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine_client.h"
#include "mailbox.h"
#include "metrics.h"
#include "model_settings.h"
#include "prompt_turns.h"
#include "quire/token_table.h"

namespace quire::triton {

// What a ready engine says of its model. Immutable.
struct ModelInfo {
  wire::ReadyFrame ready;  // without its token table, which is this one:
  TokenTable token_table;
};

class Generation : private EngineClient::Events {
 public:
  Generation(ModelSettings settings, TRITONSERVER_Server* server);
  ~Generation() override;  // stop()

  // Starts the engine and returns when it is ready; throws ServerError with the engine's own message when it
  // fails.
  void start();
  // Waits until every open request is answered, ends the engine, joins the thread.
  void stop();
  bool is_loaded() const { return is_loaded_; }  // stop() has not begun

  // For a process that ends: answers every open request with an error instead of waiting. Returns when that
  // is done, or has not been possible in a second.
  void give_up();

  uint64_t id() const { return id_; }  // unique in the process, over reloads
  const ModelSettings& settings() const { return settings_; }
  std::shared_ptr<const ModelInfo> model_info() const;
  bool is_serving() const { return is_serving_; }  // the engine takes requests now
  ModelMetrics& metrics() { return *metrics_; }    // once it is started

  // Takes over every request of the batch and answers it, now (errors) or later.
  void execute(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request** requests, uint32_t count);
  // execute() of a request to a model of role unary, in `instance`, that uses this engine. tokenized: what a
  // tokenizer answered to it, or null. start_ns: when the model got it.
  void execute_unary(TRITONBACKEND_ModelInstance* instance, Dialect dialect, TRITONBACKEND_Request* request,
                     TRITONSERVER_InferenceResponse* tokenized, uint64_t start_ns);
  void post(const Feedback& feedback) {
    mailbox_.post([&](Mail& mail) { mail.feedback.push_back(feedback); });
  }
  // Looks after a request that is being tokenized, see TokenizerCall::watch().
  void watch(const std::shared_ptr<TokenizerCall>& call) {
    mailbox_.post([&](Mail& mail) { mail.calls.push_back(call); });
  }

 private:
  using Clock = std::chrono::steady_clock;
  using ClientRequests = std::unordered_map<uint64_t, std::unique_ptr<ClientRequest>>;

  void post(std::vector<std::unique_ptr<ClientRequest>> client_requests);
  void observe_way(const NewRequest& request, uint64_t start_ns);
  bool is_idle() const { return client_requests_.empty() && calls_.empty(); }

  void run();
  bool round(Mail& mail);  // whether it is asked to stop
  void recover(const std::string& why);
  void admit(std::unique_ptr<ClientRequest> client_request, Clock::time_point now);
  void handle(const Feedback& feedback);
  void follow_engine();  // is_serving(), and its metric
  void submit();         // additions and cancellations to the engine
  void tick(Clock::time_point now);
  Clock::duration probe_interval() const;
  // Ends a client_request with an error, and tells the engine if it still works on it.
  void abort(ClientRequests::iterator it, Failure failure, const std::string& why);
  void abort_all(Failure failure, const std::string& why);
  // Ends a client_request whose deadline the engine did not keep: with what it has, or an error where that is
  // nothing.
  void end_late(ClientRequests::iterator it);
  void erase(ClientRequests::iterator it);
  void send(ClientRequest& client_request);  // what is due, unless the server has stopped the detokenizer

  void on_ready(wire::ReadyFrame& ready) override;
  void on_step(const StepOutputs& outputs) override;
  void on_lost(const std::string& why) override;
  void on_start_failed(const std::string& message, bool is_given_up) override;

  const uint64_t id_;
  const ModelSettings settings_;
  TRITONSERVER_Server* const server_;

  mutable std::mutex info_mutex_;  // guards info_
  std::shared_ptr<const ModelInfo> info_;
  std::atomic<bool> is_loaded_{true};
  std::atomic<bool> is_serving_{false};
  Mailbox mailbox_;
  std::promise<void> first_start_;
  std::promise<void> given_up_;

  // Belongs to the generation thread
  EngineClient engine_;
  std::shared_ptr<ModelMetrics> metrics_;  // from the first engine that is ready until the end
  ClientRequests client_requests_;
  // In the order of arrival, without the prompts that wait for their turn.
  std::vector<uint64_t> unsubmitted_;
  PromptTurns prompt_turns_;
  std::vector<std::shared_ptr<TokenizerCall>> calls_;
  wire::RequestsFrame requests_;  // to be sent at the end of this round
  Clock::time_point next_tick_ = Clock::time_point::max();
  bool is_first_start_settled_ = false;

  std::thread thread_;
};

}  // namespace quire::triton
