// The engine's figures on the server's own /metrics, under vLLM's names where vLLM has one.
//
// Families exist once in a process and are shared by all models; the labels model_name and version
// tell them apart, and a label namespace, the path of its repository, a model whose name another repository
// has as well (tritonserver --model-namespacing=true; Triton's own metrics have that label, too). Where the
// server was started without metrics, everything here does nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "api.h"
#include "model_settings.h"
#include "quire/request.h"

namespace quire::triton {

class MetricFamilies;
struct SeriesOwner;

// The series of one model of role generation or tokenizer. update() is for one thread, the rest for any.
class ModelMetrics {
 public:
  explicit ModelMetrics(const ModelSettings& settings);  // reports_metrics false: all of it does nothing
  ~ModelMetrics();
  ModelMetrics(const ModelMetrics&) = delete;
  ModelMetrics& operator=(const ModelMetrics&) = delete;

  // stats: {} once the engine is gone, since its counters will start from 0 again.
  void update(const EngineStats& stats);
  void set_engine_up(bool is_up);
  void engine_restarted();
  void worker_restarted();  // of a tokenizer

 private:
  void set(size_t idx, double value);
  void increment(size_t idx, double by);

  std::shared_ptr<MetricFamilies> families_;
  std::shared_ptr<const SeriesOwner> owner_;
  // As the families; null: not of this role. Empty without metrics.
  std::vector<Owned<TRITONSERVER_Metric, TRITONSERVER_MetricDelete>> metrics_;
  EngineStats last_;
};

}  // namespace quire::triton
