#include "metrics.h"

#include <map>
#include <mutex>
#include <utility>

#include "api.h"

namespace quire::triton {

namespace {

constexpr auto kGauge = TRITONSERVER_METRIC_KIND_GAUGE;
constexpr auto kCounter = TRITONSERVER_METRIC_KIND_COUNTER;

struct FamilySpec {
  TRITONSERVER_MetricKind kind;
  const char* name;
  const char* description;
  double (*value)(const EngineStats& stats);  // null: set by a call of its own
};

template <auto kMember>
double of(const EngineStats& stats) {
  return static_cast<double>(stats.*kMember);
}

double cache_usage(const EngineStats& stats) {
  const double total = stats.num_blocks;
  return total > 0 ? (total - stats.num_free_blocks) / total : 0;
}

constexpr FamilySpec kFamilies[] = {
#define QUIRE_STAT(type, name, kind, series, meaning) {kind, series, meaning, of<&EngineStats::name>},
#include "quire/engine_stats.def"
    {kGauge, "vllm:kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1", cache_usage},
    {kGauge, "quire:engine_up", "1 while the engine takes requests, 0 while it is gone or starts", nullptr},
    {kCounter, "quire:engine_restarts_total", "Times that the engine was started again after it had died",
     nullptr},
    {kCounter, "quire:tokenizer_restarts_total", "Times that a process that tokenizes was replaced", nullptr},
};
// The last three.
constexpr size_t kNumFamilies = std::size(kFamilies);
constexpr size_t kEngineUp = kNumFamilies - 3;
constexpr size_t kEngineRestarts = kNumFamilies - 2;
constexpr size_t kTokenizerRestarts = kNumFamilies - 1;

}  // namespace

// For the series with the labels model_name and version alone: one model folder, over reloads.
struct SeriesOwner {
  std::filesystem::path folder;
};

class MetricFamilies {
 public:
  // The process's families; made by the first model, deleted with the last.
  static std::shared_ptr<MetricFamilies> shared() {
    static std::mutex mutex;
    static std::weak_ptr<MetricFamilies> existing;
    const std::lock_guard lock(mutex);
    auto families = existing.lock();
    if (!families) existing = families = std::make_shared<MetricFamilies>();
    return families;
  }

  MetricFamilies() {
    for (const FamilySpec& spec : kFamilies) {
      TRITONSERVER_MetricFamily* family = nullptr;
      TRITONSERVER_Error* error =
          TRITONSERVER_MetricFamilyNew(&family, spec.kind, spec.name, spec.description);
      if (error != nullptr) {
        QUIRE_LOG(INFO, std::string("no metrics of the engine: ") + TRITONSERVER_ErrorMessage(error));
        TRITONSERVER_ErrorDelete(error);
        return;
      }
      families.emplace_back(family);
    }
  }
  bool is_complete() const { return families.size() == kNumFamilies; }

  // Whose the plain series are: the first of them that is still loaded.
  std::shared_ptr<const SeriesOwner> own(const std::string& model_name, uint64_t version,
                                         const std::filesystem::path& folder) {
    const std::lock_guard lock(mutex_);
    auto& known = owners_[{model_name, version}];
    auto owner = known.lock();
    if (!owner) known = owner = std::make_shared<const SeriesOwner>(folder);
    return owner;
  }

  std::vector<Owned<TRITONSERVER_MetricFamily, TRITONSERVER_MetricFamilyDelete>> families;

 private:
  std::mutex mutex_;  // guards owners_
  std::map<std::pair<std::string, uint64_t>, std::weak_ptr<const SeriesOwner>> owners_;
};

namespace {

// Null, and a line in the log, where it cannot be made. repository: of a model that does not own the plain
// series; else "".
TRITONSERVER_Metric* make_metric(TRITONSERVER_MetricFamily* family, const std::string& model_name,
                                 uint64_t version, const std::string& repository) {
  const std::string version_text = std::to_string(version);
  const auto label = [](const char* name, const std::string& value) {
    return TRITONSERVER_ParameterNew(name, TRITONSERVER_PARAMETER_STRING, value.c_str());
  };
  std::vector<TRITONSERVER_Parameter*> labels = {label("model_name", model_name),
                                                 label("version", version_text)};
  if (!repository.empty()) labels.push_back(label("namespace", repository));
  TRITONSERVER_Metric* metric = nullptr;
  log_if_failed(
      TRITONSERVER_MetricNew(&metric, family, const_cast<const TRITONSERVER_Parameter**>(labels.data()),
                             labels.size()),
      "making a metric");
  for (auto* label : labels) TRITONSERVER_ParameterDelete(label);
  return metric;
}

// The value of the label namespace; "": none.
std::string repository_label(const SeriesOwner& owner, const std::filesystem::path& folder) {
  return owner.folder == folder ? "" : folder.parent_path().string();
}

}  // namespace

ModelMetrics::ModelMetrics(const ModelSettings& settings) {
  if (!settings.reports_metrics) return;
  families_ = MetricFamilies::shared();
  if (!families_->is_complete()) return;
  owner_ = families_->own(settings.name, settings.version, settings.folder);
  const std::string repository = repository_label(*owner_, settings.folder);
  for (size_t idx = 0; idx < kNumFamilies; ++idx) {
    const bool has_it = (settings.role == Role::kTokenizer) == (idx == kTokenizerRestarts);
    auto* family = families_->families[idx].get();
    metrics_.emplace_back(has_it ? make_metric(family, settings.name, settings.version, repository)
                                 : nullptr);
  }
}

ModelMetrics::~ModelMetrics() = default;

void ModelMetrics::set(size_t idx, double value) {
  if (idx >= metrics_.size() || metrics_[idx] == nullptr) return;
  log_if_failed(TRITONSERVER_MetricSet(metrics_[idx].get(), value), "setting a metric");
}

void ModelMetrics::increment(size_t idx, double by) {
  if (by <= 0 || idx >= metrics_.size() || metrics_[idx] == nullptr) return;
  log_if_failed(TRITONSERVER_MetricIncrement(metrics_[idx].get(), by), "incrementing a metric");
}

void ModelMetrics::update(const EngineStats& stats) {
  for (size_t idx = 0; idx < kNumFamilies; ++idx) {
    const FamilySpec& family = kFamilies[idx];
    if (family.value == nullptr) continue;
    if (family.kind == kGauge) {
      set(idx, family.value(stats));
    } else {
      increment(idx, family.value(stats) - family.value(last_));
    }
  }
  last_ = stats;
}

void ModelMetrics::set_engine_up(bool is_up) { set(kEngineUp, is_up ? 1 : 0); }

void ModelMetrics::engine_restarted() { increment(kEngineRestarts, 1); }

void ModelMetrics::worker_restarted() { increment(kTokenizerRestarts, 1); }

}  // namespace quire::triton
