// The engine's figures on the server's own /metrics, under vLLM's names where vLLM has one.
//
// Families exist once in a process and are shared by all models; the labels model_name and version
// tell them apart, and a label namespace, the path of its repository, a model whose name another repository
// has as well (tritonserver --model-namespacing=true; Triton's own metrics have that label, too). Where the
// server was started without metrics, everything here does nothing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "quire/request.h"

namespace quire::triton {

class MetricFamilies;
struct SeriesOwner;

// One generation model's metrics. Owned and used by one thread.
class EngineMetrics {
 public:
  // folder: of the model.
  // is_enabled: false makes all of it do nothing.
  EngineMetrics(const std::string& model_name, uint64_t version, const std::filesystem::path& folder,
                bool is_enabled);
  ~EngineMetrics();
  EngineMetrics(const EngineMetrics&) = delete;
  EngineMetrics& operator=(const EngineMetrics&) = delete;

  void update(const EngineStats& stats);
  void set_engine_up(bool is_up);
  // The engine is gone: nothing runs, nothing waits; its counters will start from 0 again.
  void engine_lost();
  void engine_restarted();

 private:
  void set(size_t idx, double value);
  void increment(size_t idx, double by);

  std::shared_ptr<MetricFamilies> families_;
  std::shared_ptr<const SeriesOwner> owner_;
  std::vector<TRITONSERVER_Metric*> metrics_;  // in the order of the families; empty without metrics
  EngineStats last_;
};

// One tokenizer model's metrics. Any thread.
class TokenizerMetrics {
 public:
  TokenizerMetrics(const std::string& model_name, uint64_t version, const std::filesystem::path& folder);
  ~TokenizerMetrics();
  TokenizerMetrics(const TokenizerMetrics&) = delete;
  TokenizerMetrics& operator=(const TokenizerMetrics&) = delete;

  void worker_restarted();

 private:
  std::shared_ptr<MetricFamilies> families_;
  std::shared_ptr<const SeriesOwner> owner_;
  TRITONSERVER_Metric* restarts_ = nullptr;  // null without metrics
};

}  // namespace quire::triton
