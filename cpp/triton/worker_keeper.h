// Keeps one tokenizer worker running: a worker that ends, is stopped or is given up is replaced at once,
// whether it has a request or not.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "metrics.h"
#include "model_settings.h"
#include "tokenizer_worker.h"

namespace quire::triton {

// What the workers of a loaded model share.
struct TokenizerModel {
  explicit TokenizerModel(ModelSettings model_settings)
      : settings(std::move(model_settings)), metrics(settings) {}

  bool is_serving() const { return num_workers > 0; }

  const ModelSettings settings;
  ModelMetrics metrics;
  std::atomic<int> num_workers{0};  // that are ready, or have a request
  std::mutex mutex;
  // What the load has read, as its first worker gave it: what all later ones start from, so that files that
  // change meanwhile mean nothing until the next load. Guarded by mutex.
  std::string snapshot;
};

class WorkerKeeper {
 public:
  // Returns when the worker is ready; throws ServerError with the worker's message when it cannot start.
  explicit WorkerKeeper(std::shared_ptr<TokenizerModel> model);
  ~WorkerKeeper();
  WorkerKeeper(const WorkerKeeper&) = delete;
  WorkerKeeper& operator=(const WorkerKeeper&) = delete;

  // The worker, for one request; goes back where it came from at the end. One at a time.
  class Lease {
   public:
    Lease(WorkerKeeper& keeper, std::unique_ptr<TokenizerWorker> worker)
        : keeper_(keeper), worker_(std::move(worker)) {}
    ~Lease() { keeper_.put_back(std::move(worker_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    TokenizerWorker& worker() { return *worker_; }
    // Ends the worker, so that another takes its place. why: as in WorkerLost.
    void drop(const std::string& why);

   private:
    WorkerKeeper& keeper_;
    std::unique_ptr<TokenizerWorker> worker_;
  };

  // Waits for a worker where there is none; null where `watch` gave up. Throws ServerError when workers do
  // not start.
  std::unique_ptr<Lease> take(const TokenizerWorker::Watch& watch);

 private:
  using Clock = std::chrono::steady_clock;

  void run();
  void look_after(std::unique_lock<std::mutex>& lock);
  void start(std::unique_lock<std::mutex>& lock);
  std::unique_ptr<TokenizerWorker> make_worker();
  bool drop_if_ended();  // a worker without a request; whether it had
  void put_back(std::unique_ptr<TokenizerWorker> worker);
  void log_loss(const std::string& why) const;
  bool is_wanted() const { return !worker_ && !is_taken_; }

  const std::shared_ptr<TokenizerModel> model_;
  std::mutex mutex_;  // guards the rest
  std::condition_variable changed_;
  std::unique_ptr<TokenizerWorker> worker_;
  bool is_taken_ = false;
  bool is_stopping_ = false;
  bool was_ready_ = false;
  int num_failed_starts_ = 0;  // in a row
  uint64_t num_starts_ = 0;    // attempts that have ended
  Clock::time_point next_start_{};
  std::string start_error_;
  // The kernel ends a worker with the thread that started it (see tokenizer_worker.py), so all are started by
  // this one, which lives as long as they may.
  std::thread thread_;
};

}  // namespace quire::triton
