#include "worker_keeper.h"

#include "api.h"
#include "wire_bytes.h"

namespace quire::triton {

namespace {

using namespace std::chrono_literals;

constexpr auto kCheck = 100ms;  // how often an idle worker is looked at
constexpr auto kPoll = 10ms;    // how often watch() is called while a worker starts
constexpr auto kRetryPause = 500ms;
constexpr int kMaxFailedStarts = 3;  // in a row, before requests are told

}  // namespace

WorkerKeeper::WorkerKeeper(std::shared_ptr<TokenizerModel> model) : model_(std::move(model)) {
  thread_ = std::thread([this] { run(); });
  std::string error;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return num_starts_ > 0; });
    if (worker_) return;
    error = start_error_;
    is_stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  throw ServerError(TRITONSERVER_ERROR_UNAVAILABLE, error);
}

WorkerKeeper::~WorkerKeeper() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  if (worker_) --model_->num_workers;
}

void WorkerKeeper::run() {
  std::unique_lock lock(mutex_);
  while (!is_stopping_) {
    try {
      look_after(lock);
    } catch (const std::exception&) {  // no memory for a line of the log, say; nothing may end the thread
      if (!lock.owns_lock()) lock.lock();
      changed_.wait_for(lock, kCheck);
    }
  }
}

void WorkerKeeper::look_after(std::unique_lock<std::mutex>& lock) {
  drop_if_ended();
  const auto needs_start = [this] { return is_wanted() && Clock::now() >= next_start_; };
  if (needs_start()) {
    start(lock);
  } else {
    changed_.wait_for(lock, kCheck, [&] { return is_stopping_ || needs_start(); });
  }
}

void WorkerKeeper::start(std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  std::unique_ptr<TokenizerWorker> made;
  std::string error;
  try {
    made = make_worker();
  } catch (const std::exception& failure) {
    error = failure.what();
  }
  lock.lock();
  ++num_starts_;
  if (made) {
    if (was_ready_) {
      model_->metrics.increment(ServerSeries::kTokenizerRestarts);
      QUIRE_LOG(INFO, "tokenizer '" + model_->settings.name +
                          "': a new process has taken the place of the old one");
    }
    was_ready_ = true;
    num_failed_starts_ = 0;
    worker_ = std::move(made);
    ++model_->num_workers;
  } else if (!is_stopping_) {
    QUIRE_LOG(ERROR, "tokenizer '" + model_->settings.name + "': " + error);
    start_error_ = error;
    next_start_ = Clock::now() + std::min(++num_failed_starts_, 10) * kRetryPause;
  }
  changed_.notify_all();
}

std::unique_ptr<TokenizerWorker> WorkerKeeper::make_worker() {
  const ModelSettings& settings = model_->settings;
  // The first worker of a load alone reads files.
  std::unique_lock first(model_->mutex);
  const std::string snapshot = model_->snapshot;
  if (!snapshot.empty()) first.unlock();

  std::string frame;
  begin_frame(TokenizerFrame::kSettings, frame);
  wire::put_string(frame, settings.folder.string());
  wire::put(frame, static_cast<uint32_t>(settings.tokenizer_parameters.size()));
  for (const auto& [name, value] : settings.tokenizer_parameters) {
    wire::put_string(frame, name);
    wire::put_string(frame, value);
  }
  wire::put_string(frame, snapshot);
  end_frame(frame);

  auto worker = std::make_unique<TokenizerWorker>(settings.python, settings.tokenizer_module);
  std::optional<TokenizerWorker::Answer> answer;
  try {
    answer = worker->exchange(frame, [this] {
      const std::lock_guard lock(mutex_);
      return !is_stopping_;
    });
  } catch (const WorkerLost& lost) {
    throw Error(std::string("the tokenizer's process ") + lost.what() +
                " before it was ready; its own output is in the server's log");
  }
  if (!answer) throw Error("the model is unloaded");
  wire::Reader reader(answer->payload);
  if (answer->type == TokenizerFrame::kError) {
    reader.get<uint32_t>();
    throw Error(std::string(reader.get_string()));
  }
  if (answer->type != TokenizerFrame::kReady) throw Error("the tokenizer's process broke the protocol");
  if (snapshot.empty()) model_->snapshot = reader.get_string();
  return worker;
}

std::unique_ptr<WorkerKeeper::Lease> WorkerKeeper::take(const TokenizerWorker::Watch& watch) {
  std::unique_lock lock(mutex_);
  if (drop_if_ended()) changed_.notify_all();
  const uint64_t num_starts = num_starts_;
  while (!worker_) {
    if (num_starts_ > num_starts && num_failed_starts_ >= kMaxFailedStarts) {
      throw ServerError(TRITONSERVER_ERROR_UNAVAILABLE, "the tokenizer does not start: " + start_error_);
    }
    if (!watch()) return nullptr;
    changed_.wait_for(lock, kPoll);
  }
  is_taken_ = true;
  return std::make_unique<Lease>(*this, std::move(worker_));
}

void WorkerKeeper::put_back(std::unique_ptr<TokenizerWorker> worker) {
  {
    const std::lock_guard lock(mutex_);
    is_taken_ = false;
    worker_ = std::move(worker);
    if (worker_) return;
  }
  changed_.notify_all();
}

bool WorkerKeeper::drop_if_ended() {
  if (!worker_ || worker_->is_idle()) return false;
  worker_.reset();
  --model_->num_workers;
  log_loss("ended or was stopped while it had no request");
  return true;
}

void WorkerKeeper::Lease::drop(const std::string& why) {
  worker_.reset();
  --keeper_.model_->num_workers;
  keeper_.log_loss(why);
}

void WorkerKeeper::log_loss(const std::string& why) const {
  QUIRE_LOG(ERROR, "tokenizer '" + model_->settings.name + "': its process " + why + "; starting another");
}

}  // namespace quire::triton
