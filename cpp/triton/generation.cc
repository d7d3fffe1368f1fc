#include "generation.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "api.h"
#include "exit_watch.h"

namespace quire::triton {

namespace {

using namespace std::chrono_literals;

constexpr auto kTick = 10ms;                // how often cancellation flags and silences are looked at
constexpr auto kProbeInterval = 100ms;      // silence after which a client is probed
constexpr auto kProbeCost = 500us;          // share of the interval per open request: at most 2,000 probes/s
constexpr auto kAcknowledgePatience = 60s;  // then nobody follows this generation
constexpr auto kDeadlineGrace = 250ms;      // after a deadline, for the engine to keep it
// Prompts leave at least one in so many places of max_num_seqs to requests with one prompt.
constexpr int32_t kPlaceForOthers = 8;
constexpr char kServerEnds[] = "the server ends";

std::atomic<uint64_t> next_generation_id{1};

}  // namespace

Generation::Generation(ModelSettings settings, TRITONSERVER_Server* server)
    : id_(next_generation_id++), settings_(std::move(settings)), server_(server), engine_(settings_, *this) {}

Generation::~Generation() { stop(); }

void Generation::start() {
  auto first_start = first_start_.get_future();
  thread_ = std::thread([this] { run(); });
  first_start.get();
}

void Generation::stop() {
  is_loaded_ = false;
  if (!thread_.joinable()) return;
  mailbox_.post([](Mail& mail) { mail.stop = true; });
  thread_.join();
}

void Generation::give_up() {
  mailbox_.post([](Mail& mail) { mail.give_up = true; });
  given_up_.get_future().wait_for(1s);
}

std::shared_ptr<const ModelInfo> Generation::model_info() const {
  const std::lock_guard lock(info_mutex_);
  return info_;
}

// ---------------------------------------------------------------------------------------------- generation
// thread

void Generation::run() {
  Mail mail;
  bool is_stopping = false;
  bool is_started = false;
  while (!(is_stopping && is_idle() && mailbox_.close())) {
    try {
      if (!std::exchange(is_started, true)) engine_.try_start(Clock::now());
      is_stopping |= round(mail);
    } catch (const std::exception& error) {
      recover(error.what());
    }
  }
  engine_.stop();
  is_serving_ = false;
}

bool Generation::round(Mail& mail) {
  mail.client_requests.clear();
  mail.feedback.clear();
  mail.calls.clear();
  mail.stop = mail.give_up = false;
  const short events =
      mailbox_.wait(engine_.fd(), engine_.poll_events(), std::min(next_tick_, engine_.deadline()), mail);
  const auto now = Clock::now();
  for (auto& client_request : mail.client_requests) admit(std::move(client_request), now);
  for (const Feedback& feedback : mail.feedback) handle(feedback);
  for (auto& call : mail.calls) calls_.push_back(std::move(call));
  engine_.service(events, now);
  follow_engine();
  if (now >= next_tick_) tick(now);
  submit();
  if (mail.give_up) {
    abort_all(Failure::kUnavailable, kServerEnds);
    given_up_.set_value();
  }
  next_tick_ = is_idle() ? Clock::time_point::max() : std::min(next_tick_, now + kTick);
  return mail.stop;
}

// After an exception in the middle of a round, such as one for want of memory: what was taken out of the
// mailbox, or should have gone to the engine, may be lost. So everything open ends here, and the next round
// begins with nothing.
void Generation::recover(const std::string& why) {
  try {
    QUIRE_LOG(ERROR, "model '" + settings_.name + "': " + why + "; " +
                         std::to_string(client_requests_.size()) + " open requests end with this error");
    unsubmitted_.clear();
    prompt_turns_.clear();
    requests_.additions.clear();
    abort_all(Failure::kInternal, why);
    if (!is_first_start_settled_) on_start_failed(why, true);
  } catch (const std::exception&) {
    // Nothing is lost: what is still open is there in the next round.
  }
}

void Generation::admit(std::unique_ptr<ClientRequest> client_request, Clock::time_point now) {
  exit_watch::arm();  // where requests come, the server has set its signal handlers
  if (!engine_.try_start(now)) {
    client_request->fail(Failure::kUnavailable, "the engine does not start: " + engine_.last_start_error());
    return;
  }
  const uint64_t id = client_request->id();
  if (const void* prompts = client_request->shared_response()) {
    prompt_turns_.add(prompts, id, client_request->request().params.n);
  } else {
    unsubmitted_.push_back(id);
  }
  client_requests_.emplace(id, std::move(client_request));
}

// A chunk for a model that takes no more would leave its ensemble without an end: Triton 2.51 does not end
// one whose step is refused while another is running.
void Generation::send(ClientRequest& client_request) {
  if (!client_request.is_acknowledged() || !has_stopped(server_)) {
    client_request.send();
    return;
  }
  if (client_request.is_submitted() && !client_request.is_finished())
    requests_.cancellations.push_back(client_request.id());
  client_request.fail(Failure::kUnavailable, kServerEnds);
}

void Generation::erase(ClientRequests::iterator it) {
  prompt_turns_.end(it->first);
  client_requests_.erase(it);
}

void Generation::handle(const Feedback& feedback) {
  const auto it = client_requests_.find(feedback.request_id);
  if (it == client_requests_.end()) return;  // its last chunk needed no answer
  ClientRequest& client_request = *it->second;
  if (feedback.is_waiting) return client_request.wait_for_delivery();
  client_request.acknowledge();
  if (feedback.is_cancelled) {
    abort(it, Failure::kCancelled, "the client cancelled the request");
  } else if (!feedback.error.empty()) {
    abort(it, Failure::kInternal, feedback.error);
  } else {
    if (client_request.is_due()) send(client_request);
    if (!client_request.is_open()) erase(it);
  }
}

void Generation::follow_engine() {
  if (is_serving_ == engine_.is_ready()) return;
  is_serving_ = engine_.is_ready();
  if (metrics_) metrics_->set(ServerSeries::kEngineUp, is_serving_ ? 1 : 0);
}

void Generation::submit() {
  if (!engine_.is_ready()) return;
  const int32_t max_num_seqs = model_info()->ready.max_num_seqs;
  const int32_t limit = max_num_seqs - std::max(1, max_num_seqs / kPlaceForOthers);
  while (const auto prompt = prompt_turns_.next(limit)) {
    if (client_requests_.contains(*prompt)) {
      unsubmitted_.push_back(*prompt);
    } else {
      prompt_turns_.end(*prompt);  // cancelled meanwhile
    }
  }
  for (const uint64_t id : unsubmitted_) {
    const auto it = client_requests_.find(id);
    if (it == client_requests_.end()) continue;  // cancelled meanwhile
    it->second->mark_submitted();
    requests_.additions.push_back(it->second->request());
  }
  unsubmitted_.clear();
  if (requests_.additions.empty() && requests_.cancellations.empty()) return;
  engine_.send(requests_);
  requests_.additions.clear();
  requests_.cancellations.clear();
}

void Generation::tick(Clock::time_point now) {
  next_tick_ = now + kTick;
  std::erase_if(calls_, [](const auto& call) { return !call->watch(); });
  if (const auto last_moment = exit_watch::last_moment(); last_moment && now >= *last_moment) {
    abort_all(Failure::kUnavailable, kServerEnds);
    return;
  }
  const bool is_stopped = has_stopped(server_);
  const auto silence = probe_interval();
  for (auto it = client_requests_.begin(); it != client_requests_.end();) {
    const auto current = it++;
    ClientRequest& client_request = *current->second;
    if (is_stopped && client_request.is_acknowledged()) {
      abort(current, Failure::kUnavailable, kServerEnds);
    } else if (client_request.is_cancelled()) {
      abort(current, Failure::kCancelled, "the client cancelled the request");
    } else if (!client_request.is_submitted() && client_request.is_past_deadline(now)) {
      // Later the engine sees to it.
      abort(current, Failure::kDeadline,
            "deadline exceeded: deadline_ms passed before the engine had the request");
    } else if (!client_request.is_finished() && client_request.is_past_deadline(now - kDeadlineGrace)) {
      end_late(current);
    } else if (client_request.is_abandoned(now, kAcknowledgePatience)) {
      client_request.acknowledge();
      abort(current, Failure::kCancelled,
            "no detokenizer acknowledged a chunk for " +
                std::to_string(std::chrono::seconds(kAcknowledgePatience).count()) +
                " s; acknowledge: got true; allowed: true only where a detokenizer of this server follows");
    } else if (client_request.is_probe_due(now, silence)) {
      client_request.send_probe();
      if (!client_request.is_open()) erase(current);
    }
  }
}

Generation::Clock::duration Generation::probe_interval() const {
  return std::max<Clock::duration>(kProbeInterval, kProbeCost * client_requests_.size());
}

void Generation::end_late(ClientRequests::iterator it) {
  ClientRequest& client_request = *it->second;
  if (!client_request.has_output()) {
    abort(it, Failure::kDeadline, "deadline exceeded: deadline_ms passed, and the engine did not answer");
    return;
  }
  requests_.cancellations.push_back(client_request.id());
  client_request.end_sequences(FinishReason::kDeadline);
  if (client_request.is_due()) send(client_request);
  if (!client_request.is_open()) erase(it);
}

void Generation::abort(ClientRequests::iterator it, Failure failure, const std::string& why) {
  ClientRequest& client_request = *it->second;
  if (failure == Failure::kCancelled) {
    QUIRE_LOG(VERBOSE,
              "model '" + settings_.name + "': request " + std::to_string(client_request.id()) + ": " + why);
  }
  // The engine need not be told of the end of what it has finished or never seen.
  if (client_request.is_submitted() && !client_request.is_finished())
    requests_.cancellations.push_back(client_request.id());
  client_request.end_with_error(failure, why);
  if (!client_request.is_open()) erase(it);
}

void Generation::abort_all(Failure failure, const std::string& why) {
  for (auto it = client_requests_.begin(); it != client_requests_.end();) {
    const auto current = it++;
    abort(current, failure, why);
  }
}

void Generation::on_ready(wire::ReadyFrame& ready) {
  auto info = std::make_shared<ModelInfo>();
  info->token_table = TokenTable::deserialize(std::exchange(ready.token_table, {}));
  info->ready = ready;
  {
    const std::lock_guard lock(info_mutex_);
    info_ = std::move(info);
  }
  if (metrics_) {
    metrics_->begin(ready);
    metrics_->increment(ServerSeries::kEngineRestarts);
  } else {
    ModelSettings settings = settings_;
    settings.reports_metrics &= !ready.disable_log_stats;
    metrics_ = std::make_shared<ModelMetrics>(settings, ready);
  }
  QUIRE_LOG(INFO, "model '" + settings_.name + "': the engine serves " + ready.model + ", max_model_len " +
                      std::to_string(ready.max_model_len) + ", " + std::to_string(ready.num_blocks) +
                      " blocks of " + std::to_string(ready.block_size) + " tokens, up to " +
                      std::to_string(ready.max_num_seqs) + " requests at once");
  if (is_first_start_settled_) return;
  is_first_start_settled_ = true;
  is_serving_ = true;  // before the load returns: the server says then that it is ready
  metrics_->set(ServerSeries::kEngineUp, 1);
  first_start_.set_value();
}

void Generation::on_step(const StepOutputs& outputs) {
  metrics_->update(outputs.stats);
  for (const Observation& observation : outputs.observations) metrics_->observe(observation);
  for (const Release& release : outputs.releases) {
    const auto it = client_requests_.find(release.request_id);
    if (it == client_requests_.end() || it->second->is_finished()) continue;  // aborted meanwhile
    ClientRequest& client_request = *it->second;
    const std::string error = release.details ? release.details->error : "";
    if (release.finish_reason == FinishReason::kError) {
      if (client_request.has_siblings()) requests_.cancellations.push_back(client_request.id());
      client_request.end_with_error(Failure::kInvalid, error);
    } else if (release.finish_reason == FinishReason::kCancelled) {
      client_request.end_with_error(Failure::kCancelled, "the engine cancelled the request");
    } else if (release.finish_reason == FinishReason::kDeadline && !error.empty()) {
      client_request.end_with_error(Failure::kDeadline, error);
    } else {
      client_request.take(release, outputs);
      if (client_request.is_due()) send(client_request);
    }
    if (!client_request.is_open()) erase(it);
  }
}

void Generation::on_lost(const std::string& why) {
  QUIRE_LOG(ERROR, "model '" + settings_.name + "': the engine " + why + "; " +
                       std::to_string(client_requests_.size()) + " open requests; starting it again");
  metrics_->update({});
  requests_.cancellations.clear();
  for (auto it = client_requests_.begin(); it != client_requests_.end();) {
    // What the engine never saw waits for the next one; what it finished still leaves, chunk by chunk.
    const auto current = it++;
    ClientRequest& client_request = *current->second;
    if (!client_request.is_submitted() || client_request.is_finished()) continue;
    client_request.end_with_error(
        Failure::kUnavailable,
        "the engine " + why + " while it worked on this request; it is being started again");
    if (!client_request.is_open()) erase(current);
  }
}

void Generation::on_start_failed(const std::string& message, bool is_given_up) {
  QUIRE_LOG(ERROR, "model '" + settings_.name + "': " + message);
  if (!is_first_start_settled_) {
    // A load fails at once; the server reports it.
    is_first_start_settled_ = true;
    first_start_.set_exception(std::make_exception_ptr(ServerError(TRITONSERVER_ERROR_UNAVAILABLE, message)));
    mailbox_.post([](Mail& mail) { mail.stop = true; });
    return;
  }
  if (!is_given_up) return;
  for (auto it = client_requests_.begin(); it != client_requests_.end();) {
    const auto current = it++;
    if (current->second->is_submitted()) continue;
    current->second->fail(Failure::kUnavailable, "the engine does not start: " + message);
    erase(current);
  }
  unsubmitted_.clear();
}

}  // namespace quire::triton
