#include "thread_pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "quire/cpu/runtime.h"
#include "quire/error.h"

namespace quire::cpu {
namespace {

class ThreadPool {
 public:
  void resize(int num_threads) {
    std::lock_guard caller(caller_mutex_);
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_ = false;
    for (int i = 1; i < num_threads; ++i) workers_.emplace_back([this] { work(); });
    num_threads_.store(num_threads, std::memory_order_relaxed);
    avoided_cpu_ = -1;
  }

  int num_threads() const { return num_threads_.load(std::memory_order_relaxed); }

  void run(int64_t num_items, int64_t grain, RangeBody body, const void* context) {
    std::unique_lock caller(caller_mutex_, std::defer_lock);
    if (num_items <= grain || num_threads() == 1 || !caller.try_lock()) {
      if (num_items > 0) body(context, 0, num_items);
      return;
    }
    keep_workers_off_this_cpu();
    {
      std::lock_guard lock(mutex_);
      job_ = {num_items, grain, body, context};
      next_.store(0, std::memory_order_relaxed);
      is_open_ = true;
      ++generation_;
    }
    wake_.notify_all();
    drain(job_);
    std::unique_lock lock(mutex_);
    is_open_ = false;
    done_.wait(lock, [this] { return num_active_ == 0; });
  }

 private:
  struct Job {
    int64_t num_items = 0;
    int64_t grain = 1;
    RangeBody body = nullptr;
    const void* context = nullptr;
  };

  // Where all CPUs are busy, Linux wakes a worker on the CPU of the caller, where it waits until the caller
  // has done all the work itself. So workers may run anywhere but there; that is set anew when the caller has
  // moved.
  void keep_workers_off_this_cpu() {
#if defined(__linux__)
    const int cpu = sched_getcpu();
    if (cpu == avoided_cpu_ || cpu < 0) return;
    avoided_cpu_ = cpu;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;  // more CPUs than cpu_set_t holds
    CPU_CLR(cpu, &allowed);
    if (CPU_COUNT(&allowed) == 0) return;
    for (std::thread& worker : workers_)
      pthread_setaffinity_np(worker.native_handle(), sizeof(allowed), &allowed);
#endif
  }

  void drain(const Job& job) {
    for (;;) {
      const int64_t begin = next_.fetch_add(job.grain, std::memory_order_relaxed);
      if (begin >= job.num_items) return;
      job.body(job.context, begin, std::min(begin + job.grain, job.num_items));
    }
  }

  void work() {
    uint64_t seen = 0;
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stopping_ || (is_open_ && generation_ != seen); });
      if (stopping_) return;
      seen = generation_;
      const Job job = job_;
      ++num_active_;
      lock.unlock();
      drain(job);
      lock.lock();
      if (--num_active_ == 0) done_.notify_one();
    }
  }

  std::mutex caller_mutex_;  // held by the one caller whose job is open
  std::atomic<int> num_threads_{1};
  std::vector<std::thread> workers_;
  int avoided_cpu_ = -1;

  std::mutex mutex_;  // guards what follows, but next_
  std::condition_variable wake_, done_;
  bool stopping_ = false;
  bool is_open_ = false;  // a worker may join the job
  uint64_t generation_ = 0;
  int num_active_ = 0;  // workers inside the job
  Job job_;
  std::atomic<int64_t> next_{0};
};

// Never destroyed: its sleeping threads may outlive static destruction, and a forked child has none to join.
ThreadPool& pool() {
  static ThreadPool& instance = *new ThreadPool;
  return instance;
}

}  // namespace

void set_num_threads(int num_threads) {
  if (num_threads < 1 || num_threads > 256) {
    throw InvalidArgument("num_threads", std::to_string(num_threads), "1 to 256");
  }
  if (num_threads != pool().num_threads()) pool().resize(num_threads);
}

int num_threads() { return pool().num_threads(); }

void parallel_for(int64_t num_items, int64_t grain, RangeBody body, const void* context) {
  pool().run(num_items, std::max<int64_t>(grain, 1), body, context);
}

}  // namespace quire::cpu
