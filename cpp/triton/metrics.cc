#include "metrics.h"

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <span>
#include <string_view>
#include <utility>

#include "api.h"

namespace quire::triton {

namespace {

constexpr auto kGauge = TRITONSERVER_METRIC_KIND_GAUGE;
constexpr auto kCounter = TRITONSERVER_METRIC_KIND_COUNTER;
constexpr auto kHistogram = TRITONSERVER_METRIC_KIND_HISTOGRAM;

using Label = std::pair<std::string, std::string>;

namespace buckets {

#define QUIRE_BUCKETS(name, ...) constexpr double name##Bounds[] = {__VA_ARGS__};
#include "quire/engine_metrics.def"
#define QUIRE_BUCKETS(name, ...) constexpr std::span<const double> name = name##Bounds;
#include "quire/engine_metrics.def"
constexpr std::span<const double> kNone;
constexpr double kLengthsMark[] = {0};
constexpr std::span<const double> kLengths = kLengthsMark;  // stands for lengths_up_to(max_model_len)

// 1, 2, 5, 10, 20, ...
std::vector<double> lengths_up_to(int32_t limit) {
  std::vector<double> bounds;
  for (double power = 1; power <= limit; power *= 10) {
    for (const double step : {1, 2, 5}) {
      if (step * power <= limit) bounds.push_back(step * power);
    }
  }
  return bounds;
}

}  // namespace buckets

// Which models have a series.
constexpr uint32_t bit(Role role) { return 1u << static_cast<unsigned>(role); }
constexpr uint32_t kGeneration = bit(Role::kGeneration);
constexpr uint32_t kTokenizer = bit(Role::kTokenizer);
constexpr uint32_t kEither = kGeneration | kTokenizer;

struct SeriesSpec {
  TRITONSERVER_MetricKind kind;
  const char* family;
  const char* label;  // "name=value", or ""
  std::span<const double> bounds;
  uint32_t roles;
  const char* meaning;
  double (*value)(const EngineStats& stats);  // of an engine's gauge or counter, else null
};

template <auto kMember>
double of(const EngineStats& stats) {
  return static_cast<double>(stats.*kMember);
}

constexpr SeriesSpec kSeries[] = {
#define QUIRE_STAT(type, name, kind, series, label, meaning) \
  {kind, series, label, buckets::kNone, kGeneration, meaning, of<&EngineStats::name>},
#define QUIRE_SERIES(name, kind, series, label, meaning) QUIRE_STAT(, name, kind, series, label, meaning)
#include "quire/engine_metrics.def"
#define QUIRE_HISTOGRAM(name, series, bounds, meaning) \
  {kHistogram, series, "", buckets::bounds, kGeneration, meaning, nullptr},
#include "quire/engine_metrics.def"
#define QUIRE_HISTOGRAM_SERIES(name, series, label, bounds, meaning) \
  {kHistogram, series, label, buckets::bounds, kGeneration, meaning, nullptr},
#include "quire/engine_metrics.def"
#define QUIRE_SERVER_SERIES(name, kind, series, label, bounds, role, meaning) \
  {kind, series, label, buckets::bounds, role, meaning, nullptr},
#include "server_metrics.def"
};
// Which values the series of QUIRE_HISTOGRAM_SERIES show, in their order.
constexpr Histogram kShownAgain[] = {
#define QUIRE_HISTOGRAM_SERIES(name, series, label, bounds, meaning) Histogram::name,
#include "quire/engine_metrics.def"
};
// The table's parts: of EngineStats, histograms of the engine, other series of the same values, ServerSeries.
constexpr size_t kFirstHistogram = [] {
  size_t idx = 0;
  while (kSeries[idx].value != nullptr) ++idx;
  return idx;
}();
constexpr size_t kFirstShownAgain = kFirstHistogram + kNumHistograms;
constexpr size_t kFirstServerSeries = kFirstShownAgain + std::size(kShownAgain);

// The gauge whose labels say how the KV cache is set up; always 1.
constexpr char kCacheConfig[] = "vllm:cache_config_info";
constexpr char kCacheConfigMeaning[] = "1: the settings of the KV cache are its labels";

Label split(std::string_view label) {
  const size_t equals = label.find('=');
  return {std::string(label.substr(0, equals)), std::string(label.substr(equals + 1))};
}

// The text of a family: what its series mean.
std::string help(std::string_view family) {
  std::string text;
  for (const SeriesSpec& spec : kSeries) {
    if (spec.family != family) continue;
    if (!text.empty()) text += "; ";
    if (*spec.label != '\0') text += split(spec.label).second + ": ";
    text += spec.meaning;
  }
  return text;
}

}  // namespace

// The labels of all series of one model folder, over reloads. No two folders of one role have the same.
struct SeriesNames {
  std::filesystem::path folder;
  std::vector<Label> labels;
};

class MetricFamilies {
 public:
  using Family = Owned<TRITONSERVER_MetricFamily, TRITONSERVER_MetricFamilyDelete>;

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
    for (const SeriesSpec& spec : kSeries) {
      if (!families_.contains(spec.family)) add(spec.family, spec.kind, help(spec.family));
    }
    add(kCacheConfig, kGauge, kCacheConfigMeaning);
  }
  bool is_complete() const { return is_complete_; }

  // Null, and a line in the log, where it cannot be made.
  TRITONSERVER_Metric* make_metric(const char* family, const std::vector<Label>& labels,
                                   std::span<const double> bounds) const {
    std::vector<Owned<TRITONSERVER_Parameter, delete_parameter>> owned;
    std::vector<const TRITONSERVER_Parameter*> parameters;
    for (const auto& [name, value] : labels) {
      parameters.push_back(owned
                               .emplace_back(TRITONSERVER_ParameterNew(
                                   name.c_str(), TRITONSERVER_PARAMETER_STRING, value.c_str()))
                               .get());
    }
    TRITONSERVER_Metric* metric = nullptr;
    const auto make = [&] {
      const auto arguments = make_owned<Owned<TRITONSERVER_MetricArgs, TRITONSERVER_MetricArgsDelete>>(
          [](auto** made) { return TRITONSERVER_MetricArgsNew(made); });
      if (!bounds.empty()) {
        check(TRITONSERVER_MetricArgsSetHistogram(arguments.get(), bounds.data(), bounds.size()));
      }
      check(TRITONSERVER_MetricNewWithArgs(&metric, families_.at(family).get(), parameters.data(),
                                           parameters.size(), bounds.empty() ? nullptr : arguments.get()));
    };
    try {
      make();
    } catch (const std::exception& error) {
      QUIRE_LOG(ERROR, std::string("making the metric ") + family + ": " + error.what());
    }
    return metric;
  }

  // The labels of the model. A name that another folder has, too, gets the label that Triton's own metrics
  // have then (--model-namespacing), or the folder itself within one repository.
  std::shared_ptr<const SeriesNames> name(const ModelSettings& settings) {
    const std::lock_guard lock(mutex_);
    const std::filesystem::path& folder = settings.folder;
    for (const std::string& space : {std::string(), folder.parent_path().string(), folder.string()}) {
      auto& known = names_[{settings.role, settings.served_model_name, settings.version, space}];
      auto names = known.lock();
      if (names && names->folder != folder) continue;
      if (names) return names;
      std::vector<Label> labels = {{"model_name", settings.served_model_name},
                                   {"model", settings.served_model_name},
                                   {"engine", "0"},
                                   {"version", std::to_string(settings.version)}};
      if (!space.empty()) labels.emplace_back("namespace", space);
      known = names = std::make_shared<const SeriesNames>(SeriesNames{folder, std::move(labels)});
      return names;
    }
    return nullptr;
  }

 private:
  static TRITONSERVER_Error* delete_parameter(TRITONSERVER_Parameter* parameter) {
    TRITONSERVER_ParameterDelete(parameter);
    return nullptr;
  }

  void add(const char* name, TRITONSERVER_MetricKind kind, const std::string& help) {
    if (!is_complete_) return;
    TRITONSERVER_MetricFamily* family = nullptr;
    TRITONSERVER_Error* error = TRITONSERVER_MetricFamilyNew(&family, kind, name, help.c_str());
    if (error != nullptr) {
      QUIRE_LOG(INFO, std::string("no metrics of the engine: ") + TRITONSERVER_ErrorMessage(error));
      TRITONSERVER_ErrorDelete(error);
      is_complete_ = false;
      return;
    }
    families_.emplace(name, family);
  }

  std::map<std::string, Family, std::less<>> families_;
  bool is_complete_ = true;
  std::mutex mutex_;  // guards names_
  std::map<std::tuple<Role, std::string, uint64_t, std::string>, std::weak_ptr<const SeriesNames>> names_;
};

ModelMetrics::ModelMetrics(const ModelSettings& settings, int32_t max_model_len) {
  if (!settings.reports_metrics) return;
  families_ = MetricFamilies::shared();
  if (!families_->is_complete()) return;
  names_ = families_->name(settings);
  const std::vector<double> lengths = buckets::lengths_up_to(max_model_len);
  for (const SeriesSpec& spec : kSeries) {
    auto& metric = metrics_.emplace_back();
    if ((spec.roles & bit(settings.role)) == 0) continue;
    std::vector<Label> labels = names_->labels;
    if (*spec.label != '\0') labels.push_back(split(spec.label));
    const bool is_length = spec.bounds.data() == buckets::kLengths.data();
    metric.reset(families_->make_metric(spec.family, labels, is_length ? lengths : spec.bounds));
  }
}

ModelMetrics::ModelMetrics(const ModelSettings& settings) : ModelMetrics(settings, 0) {}

ModelMetrics::ModelMetrics(const ModelSettings& settings, const wire::ReadyFrame& ready)
    : ModelMetrics(settings, ready.max_model_len) {
  begin(ready);
}

ModelMetrics::~ModelMetrics() = default;

void ModelMetrics::begin(const wire::ReadyFrame& ready) {
  update(ready.stats);
  if (metrics_.empty()) return;
  std::vector<Label> labels = names_->labels;
  for (const auto& [name, value] : ready.cache_config) labels.emplace_back(name, value);
  cache_config_.reset();  // before the next one, which may be the same
  cache_config_.reset(families_->make_metric(kCacheConfig, labels, {}));
  if (cache_config_) log_if_failed(TRITONSERVER_MetricSet(cache_config_.get(), 1), "setting a metric");
}

void ModelMetrics::update(const EngineStats& stats) {
  for (size_t idx = 0; idx < kFirstHistogram; ++idx) {
    const SeriesSpec& spec = kSeries[idx];
    if (metric(idx) == nullptr) continue;
    const double value = spec.value(stats), by = value - spec.value(last_);
    // A gauge is set whether it has changed or not: while a model is loaded again, two share it.
    if (spec.kind == kGauge) {
      log_if_failed(TRITONSERVER_MetricSet(metric(idx), value), "setting a metric");
    } else if (by > 0) {
      log_if_failed(TRITONSERVER_MetricIncrement(metric(idx), by), "incrementing a metric");
    }
  }
  last_ = stats;
}

void ModelMetrics::observe(const Observation& observation) {
  const auto observe_at = [&](size_t idx) {
    TRITONSERVER_Metric* const observed = metric(idx);
    for (uint32_t i = 0; observed != nullptr && i < observation.count; ++i) {
      log_if_failed(TRITONSERVER_MetricObserve(observed, observation.value), "observing a value");
    }
  };
  observe_at(kFirstHistogram + observation.histogram);
  for (size_t i = 0; i < std::size(kShownAgain); ++i) {
    if (static_cast<uint32_t>(kShownAgain[i]) == observation.histogram) observe_at(kFirstShownAgain + i);
  }
}

void ModelMetrics::count(Failure failure) {
  switch (failure) {
    case Failure::kInvalid:
      return increment(ServerSeries::kRefusedInvalid);
    case Failure::kUnavailable:
      return increment(ServerSeries::kRefusedUnavailable);
    case Failure::kInternal:
      return increment(ServerSeries::kRefusedInternal);
    case Failure::kCancelled:
      return increment(ServerSeries::kCancelled);
    case Failure::kDeadline:
      return;  // a miss, which may have a part of its answer and no error
  }
}

void ModelMetrics::observe_ns(ServerSeries series, int64_t nanoseconds) {
  observe(series, static_cast<double>(std::max<int64_t>(nanoseconds, 0)) * 1e-9);
}

void ModelMetrics::set(ServerSeries series, double value) {
  TRITONSERVER_Metric* const own = metric(kFirstServerSeries + static_cast<size_t>(series));
  if (own != nullptr) log_if_failed(TRITONSERVER_MetricSet(own, value), "setting a metric");
}

void ModelMetrics::increment(ServerSeries series, double by) {
  TRITONSERVER_Metric* const own = metric(kFirstServerSeries + static_cast<size_t>(series));
  if (own != nullptr) log_if_failed(TRITONSERVER_MetricIncrement(own, by), "incrementing a metric");
}

void ModelMetrics::observe(ServerSeries series, double value) {
  TRITONSERVER_Metric* const own = metric(kFirstServerSeries + static_cast<size_t>(series));
  if (own != nullptr) log_if_failed(TRITONSERVER_MetricObserve(own, value), "observing a value");
}

}  // namespace quire::triton
