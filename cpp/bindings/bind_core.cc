// Python names of the core. Objects that belong to an EngineCore (Batch, StepOutputs) keep it alive, and
// change with its later schedule() or update().
#include <pybind11/functional.h>
#include <pybind11/native_enum.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <array>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "bind_members.h"
#include "bindings.h"
#include "quire/engine_core.h"
#include "quire/error.h"

namespace quire::bindings {
namespace {

namespace py = pybind11;

// Borrows any contiguous one-dimensional buffer of int32: numpy array, torch CPU tensor's numpy(),
// array.array.
class Int32Buffer {
 public:
  Int32Buffer(const char* name, const py::buffer& buffer) : info_(buffer.request()) {
    const bool is_int32 = info_.item_type_is_equivalent_to<int32_t>();
    if (!is_int32 || info_.ndim != 1 || (info_.shape[0] > 1 && info_.strides[0] != sizeof(int32_t))) {
      throw InvalidArgument(
          name, "a buffer of format '" + info_.format + "' with " + std::to_string(info_.ndim) + " axes",
          "a contiguous buffer of int32 with 1 axis");
    }
  }
  std::span<const int32_t> span() const {
    return {static_cast<const int32_t*>(info_.ptr), static_cast<size_t>(info_.shape[0])};
  }

 private:
  py::buffer_info info_;
};

// One Python exception per C++ error class.
void bind_errors(py::module_& m) {
  static py::handle invalid_argument;
  static py::handle internal_error;
  const auto add = [&](const char* name, PyObject* base, const char* doc, const py::dict& attributes = {}) {
    const std::string full_name = m.attr("__name__").cast<std::string>() + "." + name;
    PyObject* type = PyErr_NewExceptionWithDoc(full_name.c_str(), doc, base, attributes.ptr());
    if (!type) throw py::error_already_set();
    m.attr(name) = py::reinterpret_steal<py::object>(type);
    return py::handle(type);  // the module keeps it alive
  };
  invalid_argument =
      add("InvalidArgument", PyExc_ValueError, "A caller's mistake; `field` names what was wrong.",
          py::dict(py::arg("__annotations__") = py::dict(py::arg("field") = "str")));
  internal_error = add("InternalError", PyExc_RuntimeError, "An invariant of Quire does not hold: a bug.");
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const InvalidArgument& error) {
      const py::object instance = invalid_argument(error.what());
      instance.attr("field") = error.field();
      PyErr_SetObject(invalid_argument.ptr(), instance.ptr());
    } catch (const InternalError& error) {
      PyErr_SetString(internal_error.ptr(), error.what());
    }
  });
}

void bind_config(py::module_& m) {
  py::native_enum<SchedulingPolicy>(m, "SchedulingPolicy", "enum.IntEnum", "Who goes first.")
      .value("FCFS", SchedulingPolicy::kFcfs)
      .value("PRIORITY", SchedulingPolicy::kPriority)
      .finalize();
  py::class_<EngineConfig> config(m, "EngineConfig",
                                  "Limits and sizes of one engine; checked by EngineCore.");
  def_keywords<EngineConfig>(config);
  def_members<EngineConfig>(config);
}

void bind_token_table(py::module_& m) {
  py::native_enum<DecoderKind>(m, "DecoderKind", "enum.IntEnum", "How token texts become text.")
      .value("BYTE_LEVEL", DecoderKind::kByteLevel)
      .value("BYTE_FALLBACK", DecoderKind::kByteFallback)
      .value("JOINED", DecoderKind::kJoined)
      .value("WORD_PIECE", DecoderKind::kWordPiece)
      .finalize();
  m.attr("TOKEN_SPECIAL") = static_cast<int>(kTokenSpecial);
  m.attr("TOKEN_BYTE") = static_cast<int>(kTokenByte);
  m.attr("TOKEN_UNKNOWN") = static_cast<int>(kTokenUnknown);
  m.attr("STRIP_NOTHING") = kStripNothing;
  m.attr("STRIP_ONE_SPACE") = kStripOneSpace;
  m.attr("STRIP_FIRST_TOKEN") = kStripFirstToken;

  // Building, packing and unpacking touch every token of the vocabulary: milliseconds, without the GIL.
  py::class_<TokenTable>(m, "TokenTable", "What each token id contributes to the text. Immutable.")
      .def(py::init([](DecoderKind kind, const std::vector<py::bytes>& texts, std::vector<uint8_t> flags,
                       std::string separator, int32_t strip_left) {
             const std::vector<std::string> copies(texts.begin(), texts.end());
             py::gil_scoped_release release;
             return TokenTable(kind, copies, std::move(flags), std::move(separator), strip_left);
           }),
           py::arg("kind"), py::arg("texts"), py::arg("flags"), py::arg("separator") = "",
           py::arg("strip_left") = kStripNothing)
      .def("__len__", &TokenTable::size)
      .def_property_readonly("kind", &TokenTable::kind)
      .def_property_readonly("separator", &TokenTable::separator)
      .def_property_readonly("strip_left", &TokenTable::strip_left)
      .def(
          "text", [](const TokenTable& self, int32_t id) { return py::bytes(self.text(id)); }, py::arg("id"))
      .def("flags", &TokenTable::flags, py::arg("id"))
      .def("contributes", &TokenTable::contributes, py::arg("id"), py::arg("skip_special_tokens"))
      .def(
          "decode",
          [](const TokenTable& self, const std::vector<int32_t>& ids, bool is_first, int32_t trim,
             bool skip_special_tokens, uint32_t open_text) {
            return self.decode(ids, is_first, trim, skip_special_tokens, OpenText(open_text));
          },
          py::arg("ids"), py::arg("is_first") = true, py::arg("trim") = 0,
          py::arg("skip_special_tokens") = true, py::arg("open_text") = 0)
      .def(
          "open_text",
          [](const TokenTable& self, const std::vector<int32_t>& ids, bool skip_special_tokens) {
            return self.open_text(ids, skip_special_tokens).bits();
          },
          py::arg("ids"), py::arg("skip_special_tokens") = true)
      .def("serialize",
           [](const TokenTable& self) {
             std::string bytes;
             {
               py::gil_scoped_release release;
               bytes = self.serialize();
             }
             return py::bytes(bytes);
           })
      .def_static(
          "deserialize",
          [](const py::bytes& bytes) {
            const std::string_view given = bytes;
            py::gil_scoped_release release;
            return TokenTable::deserialize(given);
          },
          py::arg("bytes"));
}

// A Release with its ids: a copy that outlives the step.
struct ReleaseCopy : Release {
  std::vector<int32_t> token_ids;

  const ReleaseDetails& get_details() const {
    static const ReleaseDetails kNone;
    return details ? *details : kNone;
  }
};

// Each place's own token, then the likeliest, as [places, num_per_place]; a copy. None: not asked for.
py::typing::Optional<py::array_t<Logprob>> to_places(const std::vector<Logprob>& entries,
                                                     uint32_t num_per_place) {
  if (num_per_place == 0) return py::none();
  const std::array<size_t, 2> shape{entries.size() / num_per_place, num_per_place};
  return py::array_t<Logprob>(shape, entries.data());
}

void bind_outputs(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(Logprob, token_id, logprob, rank);

  py::class_<EngineStats> stats(m, "EngineStats", "Gauges of now, and totals since the start.");
  def_members<EngineStats>(stats);

  py::class_<RequestTiming>(m, "RequestTiming",
                            "Where the time of a request went, up to its end in the core.")
      .def("to_json", &to_json, py::arg("text_ns"));

  py::class_<ReleaseCopy> release(m, "Release",
                                  "A run of ids whose text decodes on its own (TokenTable.decode).");
  def_members<Release>(release);
  release.def_readonly("token_ids", &ReleaseCopy::token_ids)
      .def_property_readonly("error", [](const ReleaseCopy& self) { return self.get_details().error; })
      .def_property_readonly("receipt", [](const ReleaseCopy& self) { return self.get_details().timing; })
      .def_property_readonly(
          "stop_reason",
          [](const ReleaseCopy& self) -> py::typing::Optional<py::typing::Union<py::str, py::int_>> {
            const ReleaseDetails& details = self.get_details();
            if (!details.stop_string.empty()) return py::str(details.stop_string);
            return details.stop_token_id < 0 ? py::none() : py::object(py::int_(details.stop_token_id));
          },
          "The stop string or the stop token's id; None: another end, or none.")
      .def_property_readonly(
          "logprobs",
          [](const ReleaseCopy& self) {
            return to_places(self.get_details().logprobs, self.get_details().num_per_id);
          },
          "[num_ids, 1 + n] of (token_id, logprob, rank): each id's own, then the likeliest, then -1 where "
          "there are no more. None: not asked for.")
      .def_property_readonly(
          "prompt_logprobs",
          [](const ReleaseCopy& self) {
            return to_places(self.get_details().prompt_logprobs, self.get_details().num_per_prompt_place);
          },
          "As logprobs, of the prompt from its second token on, with the first ids; None: not here.")
      .def_property_readonly(
          "cumulative_logprob",
          [](const ReleaseCopy& self) -> std::optional<double> {
            if (self.get_details().num_per_id == 0) return std::nullopt;
            return self.get_details().cumulative_logprob;
          },
          "Of the request's ids up to here.")
      .def("__repr__", [](const ReleaseCopy& self) {
        return "Release(request_id=" + std::to_string(self.request_id) +
               ", index=" + std::to_string(self.index) + ", num_ids=" + std::to_string(self.num_ids) +
               ", finish_reason='" + to_string(self.finish_reason) + "')";
      });

  py::class_<StepOutputs>(
      m, "StepOutputs",
      "What may leave after a step. Belongs to its core, and holds until the next update() or "
      "take_outputs(); `releases` are copies.")
      .def_property_readonly("stats", [](const StepOutputs& self) { return self.stats; })
      .def("__len__", [](const StepOutputs& self) { return self.releases.size(); })
      .def_property_readonly(
          "observations",
          [](const StepOutputs& self) {
            std::vector<std::tuple<std::string, double, uint32_t>> copies;
            for (const Observation& observation : self.observations) {
              copies.emplace_back(kHistogramNames[observation.histogram], observation.value,
                                  observation.count);
            }
            return copies;
          },
          "(series, value, how often) of histograms.")
      .def_property_readonly("releases", [](const StepOutputs& self) {
        std::vector<ReleaseCopy> copies;
        copies.reserve(self.releases.size());
        for (const Release& release : self.releases) {
          const auto ids = self.ids(release);
          copies.push_back({release, {ids.begin(), ids.end()}});
        }
        return copies;
      });
}

// token_logprobs, token_ranks, top_ids, top_logprobs: as LogprobRows has them.
template <typename T>
using Contiguous = py::array_t<T, py::array::c_style>;
using LogprobArrays =
    std::tuple<Contiguous<float>, Contiguous<int32_t>, Contiguous<int32_t>, Contiguous<float>>;

LogprobRows to_rows(const std::optional<LogprobArrays>& arrays) {
  if (!arrays) return {};
  const auto span = [](const auto& array) {
    return std::span(array.data(), static_cast<size_t>(array.size()));
  };
  const auto& [token_logprobs, token_ranks, top_ids, top_logprobs] = *arrays;
  return {span(token_logprobs), span(token_ranks), span(top_ids), span(top_logprobs)};
}

void bind_engine_core(py::module_& m) {
  // schedule() and update() keep the GIL: they take tens of microseconds, less than another thread may make
  // us wait for getting it back.
  py::class_<EngineCore>(m, "EngineCore", "The engine without a model. One owner thread.")
      .def(py::init([](const EngineConfig& config, const TokenTable& token_table,
                       std::optional<EngineClock> clock) {
             py::gil_scoped_release release;  // allocates the block tables, copies the token table
             return std::make_unique<EngineCore>(config, token_table,
                                                 clock ? std::move(*clock) : EngineClock(monotonic_ns));
           }),
           py::arg("config"), py::arg("token_table"), py::arg("clock") = py::none())
      .def_property_readonly("config", &EngineCore::config, py::return_value_policy::reference_internal)
      .def_property_readonly("token_table", &EngineCore::token_table,
                             py::return_value_policy::reference_internal)
      .def(
          "add_request",
          [](EngineCore& self, uint64_t request_id, std::vector<int32_t> prompt_ids,
             const SamplingParams& params, int32_t priority, int64_t arrival_ns, int64_t tokenize_ns,
             int64_t deadline_ns, bool return_receipt) {
            self.add_request({.request_id = request_id,
                              .prompt_ids = std::move(prompt_ids),
                              .params = params,
                              .priority = priority,
                              .arrival_ns = arrival_ns,
                              .tokenize_ns = tokenize_ns,
                              .deadline_ns = deadline_ns,
                              .return_receipt = return_receipt});
          },
          py::arg("request_id"), py::arg("prompt_ids"), py::arg("params"), py::kw_only(),
          py::arg("priority") = 0, py::arg("arrival_ns") = 0, py::arg("tokenize_ns") = 0,
          py::arg("deadline_ns") = 0, py::arg("return_receipt") = false)
      .def("cancel", &EngineCore::cancel, py::arg("request_id"))
      .def("fail", &EngineCore::fail, py::arg("request_id"), py::arg("message"))
      .def("has_unfinished_requests", &EngineCore::has_unfinished_requests)
      .def("schedule", &EngineCore::schedule, py::return_value_policy::reference_internal)
      .def("num_batches_in_flight", &EngineCore::num_batches_in_flight)
      .def("forget_batches", &EngineCore::forget_batches)
      .def("clear", &EngineCore::clear)
      .def(
          "update",
          [](EngineCore& self, const py::typing::Union<py::array_t<int32_t>, py::buffer>& sampled,
             const std::optional<LogprobArrays>& logprobs,
             const std::optional<LogprobArrays>& prompt_logprobs,
             const std::optional<py::typing::Union<py::array_t<int32_t>, py::buffer>>& counts)
              -> const StepOutputs& {
            const StepLogprobs given{to_rows(logprobs), to_rows(prompt_logprobs)};
            const Int32Buffer ids("sampled", py::buffer(sampled));
            if (!counts) return self.update(ids.span(), given);
            return self.update(ids.span(), given, Int32Buffer("counts", py::buffer(*counts)).span());
          },
          py::arg("sampled"), py::arg("logprobs") = py::none(), py::arg("prompt_logprobs") = py::none(),
          py::arg("counts") = py::none(), py::return_value_policy::reference_internal,
          "Ids of the oldest batch in flight; counts: how many in a row each sample gives (None: one). "
          "Several "
          "only while no other batch is in flight.")
      .def("take_outputs", &EngineCore::take_outputs, py::return_value_policy::reference_internal)
      .def("outputs", &EngineCore::outputs, py::return_value_policy::reference_internal)
      .def("stats", &EngineCore::stats)
      .def(
          "report",
          [](EngineCore& self, const std::string& name, uint64_t value) {
            bool is_known = false;
            self.report([&](EngineStats& stats) {
              for_each_member<EngineStats>([&]<class M>(const M& member) {
                if (name != member.name) return;
                stats.*member.pointer = static_cast<typename M::Type>(value);
                is_known = true;
              });
            });
            if (!is_known) throw InvalidArgument("name", name, "a member of EngineStats");
          },
          "Sets a figure that the runner knows.", py::arg("name"), py::arg("value"))
      .def("observe_step_host", &EngineCore::observe_step_host, py::arg("nanoseconds"))
      .def("check_integrity", &EngineCore::check_integrity);
}

}  // namespace

void bind_core(py::module_& m) {
  bind_errors(m);
  bind_config(m);
  bind_sampling(m);
  bind_token_table(m);
  bind_batch(m);
  bind_outputs(m);
  bind_engine_core(m);
}

}  // namespace quire::bindings
