// SamplingParams: every field as a keyword and as a property. None stands for "not given" where 0 or -1 does
// in C++.
#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "quire/sampling.h"

namespace quire::bindings {
namespace {

namespace py = pybind11;

using Pairs = std::vector<std::pair<int32_t, float>>;

std::vector<LogitBias> from_pairs(const Pairs& pairs) {
  std::vector<LogitBias> logit_bias;
  logit_bias.reserve(pairs.size());
  for (const auto& [id, bias] : pairs) logit_bias.push_back({id, bias});
  return logit_bias;
}

Pairs to_pairs(const std::vector<LogitBias>& logit_bias) {
  Pairs pairs;
  pairs.reserve(logit_bias.size());
  for (const auto& [id, bias] : logit_bias) pairs.emplace_back(id, bias);
  return pairs;
}

}  // namespace

void bind_sampling(py::module_& m) {
  const SamplingParams defaults;
  py::class_<SamplingParams>(m, "SamplingParams",
                             "What a request may ask; checked by EngineCore.add_request.")
      .def(py::init([](int32_t n, int32_t max_tokens, int32_t min_tokens, float temperature, float top_p,
                       int32_t top_k, float min_p, float presence_penalty, float frequency_penalty,
                       float repetition_penalty, const Pairs& logit_bias,
                       std::vector<int32_t> allowed_token_ids, std::vector<std::vector<int32_t>> bad_word_ids,
                       std::optional<int64_t> seed, bool ignore_eos, bool skip_special_tokens,
                       bool include_stop_str_in_output, std::vector<std::string> stop,
                       std::vector<int32_t> stop_token_ids, std::optional<int32_t> logprobs,
                       std::optional<int32_t> prompt_logprobs, bool detokenize, int32_t stream_interval,
                       std::string cache_salt) {
             SamplingParams params;
             params.n = n;
             params.max_tokens = max_tokens;
             params.min_tokens = min_tokens;
             params.temperature = temperature;
             params.top_p = top_p;
             params.top_k = top_k;
             params.min_p = min_p;
             params.presence_penalty = presence_penalty;
             params.frequency_penalty = frequency_penalty;
             params.repetition_penalty = repetition_penalty;
             params.logit_bias = from_pairs(logit_bias);
             params.allowed_token_ids = std::move(allowed_token_ids);
             params.bad_word_ids = std::move(bad_word_ids);
             params.has_seed = seed.has_value();
             params.seed = seed.value_or(0);
             params.ignore_eos = ignore_eos;
             params.skip_special_tokens = skip_special_tokens;
             params.include_stop_str_in_output = include_stop_str_in_output;
             params.stop = std::move(stop);
             params.stop_token_ids = std::move(stop_token_ids);
             params.logprobs = logprobs.value_or(-1);
             params.prompt_logprobs = prompt_logprobs.value_or(-1);
             params.detokenize = detokenize;
             params.stream_interval = stream_interval;
             params.cache_salt = std::move(cache_salt);
             return params;
           }),
           py::kw_only(), py::arg("n") = defaults.n, py::arg("max_tokens") = defaults.max_tokens,
           py::arg("min_tokens") = defaults.min_tokens, py::arg("temperature") = defaults.temperature,
           py::arg("top_p") = defaults.top_p, py::arg("top_k") = defaults.top_k,
           py::arg("min_p") = defaults.min_p, py::arg("presence_penalty") = defaults.presence_penalty,
           py::arg("frequency_penalty") = defaults.frequency_penalty,
           py::arg("repetition_penalty") = defaults.repetition_penalty, py::arg("logit_bias") = Pairs(),
           py::arg("allowed_token_ids") = defaults.allowed_token_ids,
           py::arg("bad_word_ids") = defaults.bad_word_ids, py::arg("seed") = py::none(),
           py::arg("ignore_eos") = defaults.ignore_eos,
           py::arg("skip_special_tokens") = defaults.skip_special_tokens,
           py::arg("include_stop_str_in_output") = defaults.include_stop_str_in_output,
           py::arg("stop") = defaults.stop, py::arg("stop_token_ids") = defaults.stop_token_ids,
           py::arg("logprobs") = py::none(), py::arg("prompt_logprobs") = py::none(),
           py::arg("detokenize") = defaults.detokenize, py::arg("stream_interval") = defaults.stream_interval,
           py::arg("cache_salt") = defaults.cache_salt)
      .def_readonly("n", &SamplingParams::n)
      .def_readonly("max_tokens", &SamplingParams::max_tokens)
      .def_readonly("min_tokens", &SamplingParams::min_tokens)
      .def_readonly("temperature", &SamplingParams::temperature)
      .def_readonly("top_p", &SamplingParams::top_p)
      .def_readonly("top_k", &SamplingParams::top_k)
      .def_readonly("min_p", &SamplingParams::min_p)
      .def_readonly("presence_penalty", &SamplingParams::presence_penalty)
      .def_readonly("frequency_penalty", &SamplingParams::frequency_penalty)
      .def_readonly("repetition_penalty", &SamplingParams::repetition_penalty)
      .def_property_readonly("logit_bias",
                             [](const SamplingParams& self) { return to_pairs(self.logit_bias); })
      .def_readonly("allowed_token_ids", &SamplingParams::allowed_token_ids)
      .def_readonly("bad_word_ids", &SamplingParams::bad_word_ids)
      .def_property_readonly(
          "seed",
          [](const SamplingParams& self) { return self.has_seed ? std::optional(self.seed) : std::nullopt; })
      .def_readonly("ignore_eos", &SamplingParams::ignore_eos)
      .def_readonly("skip_special_tokens", &SamplingParams::skip_special_tokens)
      .def_readonly("include_stop_str_in_output", &SamplingParams::include_stop_str_in_output)
      .def_readonly("stop", &SamplingParams::stop)
      .def_readonly("stop_token_ids", &SamplingParams::stop_token_ids)
      .def_property_readonly("logprobs",
                             [](const SamplingParams& self) {
                               return self.logprobs < 0 ? std::nullopt : std::optional(self.logprobs);
                             })
      .def_property_readonly("prompt_logprobs",
                             [](const SamplingParams& self) {
                               return self.prompt_logprobs < 0 ? std::nullopt
                                                               : std::optional(self.prompt_logprobs);
                             })
      .def_readonly("detokenize", &SamplingParams::detokenize)
      .def_readonly("stream_interval", &SamplingParams::stream_interval)
      .def_readonly("cache_salt", &SamplingParams::cache_salt);

  py::native_enum<FinishReason>(m, "FinishReason", "enum.IntEnum",
                                "Why a request ended; str() of a Release's is its name.")
      .value("NONE", FinishReason::kNone)
      .value("STOP", FinishReason::kStop)
      .value("LENGTH", FinishReason::kLength)
      .value("CANCELLED", FinishReason::kCancelled)
      .value("ERROR", FinishReason::kError)
      .value("DEADLINE", FinishReason::kDeadline)
      .finalize();
}

}  // namespace quire::bindings
