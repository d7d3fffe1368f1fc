// The server's own /metrics: the series of the engine and of this backend, under vLLM's names where vLLM has
// one.
//
// Families exist once in a process and are shared by all models; labels tell the models apart (SeriesNames).
// Where the server was started without metrics, or the model's are switched off, everything here does
// nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "api.h"
#include "failure.h"
#include "model_settings.h"
#include "quire/request.h"
#include "quire/wire.h"

namespace quire::triton {

enum class ServerSeries : size_t {
#define QUIRE_SERVER_SERIES(name, kind, series, label, buckets, role, meaning) name,
#include "server_metrics.def"
};

class MetricFamilies;
struct SeriesNames;

// The series of one model of role generation or tokenizer. begin(), update() and observe() of an observation
// are for one thread, the others for any.
class ModelMetrics {
 public:
  explicit ModelMetrics(const ModelSettings& settings);                        // of a tokenizer
  ModelMetrics(const ModelSettings& settings, const wire::ReadyFrame& ready);  // of a ready engine
  ~ModelMetrics();
  ModelMetrics(const ModelMetrics&) = delete;
  ModelMetrics& operator=(const ModelMetrics&) = delete;

  // Another engine is ready: `ready` has its counters, which start again, and its cache.
  void begin(const wire::ReadyFrame& ready);
  void update(const EngineStats& stats);  // {} once the engine is gone
  void observe(const Observation& observation);

  void set(ServerSeries series, double value);
  void increment(ServerSeries series, double by = 1);
  void observe(ServerSeries series, double value);
  void observe_ns(ServerSeries series, int64_t nanoseconds);  // in seconds; what is less than 0 as 0
  void count(Failure failure);                                // of a request that is answered with an error

 private:
  ModelMetrics(const ModelSettings& settings, int32_t max_model_len);
  TRITONSERVER_Metric* metric(size_t idx) const {
    return idx < metrics_.size() ? metrics_[idx].get() : nullptr;
  }

  std::shared_ptr<MetricFamilies> families_;
  std::shared_ptr<const SeriesNames> names_;
  // One for each row of the table of series, null where models of this role have none. Empty without metrics.
  std::vector<Owned<TRITONSERVER_Metric, TRITONSERVER_MetricDelete>> metrics_;
  Owned<TRITONSERVER_Metric, TRITONSERVER_MetricDelete> cache_config_;
  EngineStats last_;
};

}  // namespace quire::triton
