// Batch and its layouts: a step's arrays as views, or packed into buffers.
#include <pybind11/numpy.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <vector>

#include "bindings.h"
#include "quire/batch_layout.h"
#include "quire/edits_layout.h"

namespace quire::bindings {
namespace {

namespace py = pybind11;

// A view of the core's memory: nothing is copied, nothing can be written, `owner` is kept alive.
template <typename T>
py::array_t<T> view(const T* data, std::vector<py::ssize_t> shape, const py::object& owner) {
  py::array_t<T> array(std::move(shape), data, owner);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

// Adds a property that views the first size(batch) elements of a Batch's vector.
template <typename T, typename Size>
void bind_view(py::class_<Batch>& batch, const char* name, std::vector<T> Batch::* field, Size size,
               const char* doc) {
  batch.def_property_readonly(
      name,
      [field, size](const py::object& self) {
        const auto& value = self.cast<const Batch&>();
        return view((value.*field).data(), {static_cast<py::ssize_t>(size(value))}, self);
      },
      doc);
}

// Adds a property that views a whole array of BatchEdits.
template <typename T>
void bind_edits_view(py::class_<BatchEdits>& edits, const char* name, std::vector<T> BatchEdits::* field,
                     const char* doc) {
  edits.def_property_readonly(
      name,
      [field](const py::object& self) {
        const auto& value = self.cast<const BatchEdits&>().*field;
        return view(value.data(), {static_cast<py::ssize_t>(value.size())}, self);
      },
      doc);
}

void bind_batch_edits(py::module_& m) {
  py::class_<BatchEdits> edits(
      m, "BatchEdits", "What requests of a batch change about their logits: views, as those of Batch.");
  bind_edits_view(edits, "min_p", &BatchEdits::min_p, "[num_sampled] float32; 0: off");
  bind_edits_view(edits, "repetition_penalty", &BatchEdits::repetition_penalty, "[num_sampled] float32");
  bind_edits_view(edits, "presence_penalty", &BatchEdits::presence_penalty, "[num_sampled] float32");
  bind_edits_view(edits, "frequency_penalty", &BatchEdits::frequency_penalty, "[num_sampled] float32");
  bind_edits_view(edits, "allowed_rows", &BatchEdits::allowed_rows,
                  "[num_sampled] int32: rows of allowed_masks; -1: all tokens are allowed");
  bind_edits_view(edits, "bias_offsets", &BatchEdits::bias_offsets, "[num_sampled + 1] int32");
  bind_edits_view(edits, "bias_ids", &BatchEdits::bias_ids, "[num_biases] int32; ascending in each row");
  bind_edits_view(edits, "biases", &BatchEdits::biases, "[num_biases] float32; -inf: not to be sampled");
  bind_edits_view(edits, "counted_rows", &BatchEdits::counted_rows,
                  "[num_counted] int32: rows of token_counts to be written first");
  bind_edits_view(edits, "counted_offsets", &BatchEdits::counted_offsets, "[num_counted + 1] int32");
  bind_edits_view(edits, "counted_prompt_lens", &BatchEdits::counted_prompt_lens, "[num_counted] int32");
  bind_edits_view(edits, "counted_token_ids", &BatchEdits::counted_token_ids, "[counted_offsets[-1]] int32");
  bind_edits_view(edits, "masked_rows", &BatchEdits::masked_rows,
                  "[num_masked] int32: rows of allowed_masks to be written first");
  bind_edits_view(edits, "masks", &BatchEdits::masks, "[num_masked * num_mask_words] uint32");
  edits
      .def_property_readonly("num_table_row_bytes",
                             [](const BatchEdits& self) { return table_rows_layout(self).num_bytes; })
      .def(
          "pack_table_rows",
          [](const BatchEdits& self, uintptr_t address) {
            pack_table_rows(self, reinterpret_cast<void*>(address));
            const TableRowsLayout layout = table_rows_layout(self);
            py::typing::Dict<py::str, py::int_> offsets;
            for (int i = 0; i < kNumTableRowArrays; ++i) {
              offsets[kTableRowArrayNames[i]] = layout.offsets[i];
            }
            return offsets;
          },
          py::arg("address"),
          "Write counted_rows to masks to num_table_row_bytes bytes of memory; where each of them lies, in "
          "bytes.");
}

void bind_batch_class(py::module_& m) {
  py::class_<Batch> batch(
      m, "Batch",
      "One step's work. Arrays are read-only views of the core's memory, without a copy: they hold "
      "until the batch's update(); a later schedule() overwrites them. They keep the core alive.");
  batch.def_readonly("num_reqs", &Batch::num_reqs)
      .def_readonly("num_tokens", &Batch::num_tokens)
      .def_readonly("num_sampled", &Batch::num_sampled)
      .def_readonly("max_query_len", &Batch::max_query_len)
      .def_readonly("max_seq_len", &Batch::max_seq_len)
      .def_readonly("num_prompt_rows", &Batch::num_prompt_rows)
      .def_readonly("has_logprobs", &Batch::has_logprobs)
      .def_property_readonly(
          "block_tables",
          [](const py::object& self) {
            const auto& value = self.cast<const Batch&>();
            return view(value.block_tables, {value.num_block_table_rows, value.block_table_stride}, self);
          },
          "[max_num_seqs, max_blocks_per_request] int32; entries past a request's blocks are stale; the next "
          "schedule() changes it")
      .def_property_readonly("num_block_copies", &Batch::num_block_copies)
      .def_property_readonly(
          "block_copies",
          [](const py::object& self) {
            const auto& value = self.cast<const Batch&>();
            return view(value.block_copies.data(), {value.num_block_copies(), 2}, self);
          },
          "[num_block_copies, 2] int32: source, destination; whole blocks to be copied ahead of the step")
      .def_property_readonly(
          "block_table_updates",
          [](const py::object& self) {
            const auto& value = self.cast<const Batch&>();
            return view(value.block_table_updates.data(), {value.num_block_table_updates(), 2}, self);
          },
          "[num_updates, 2] int32: index into the flat block_tables, block id, of each entry that was set "
          "since "
          "the schedule() before")
      .def(
          "pack",
          [](const Batch& self, const BatchLayout& layout, uintptr_t address, int32_t num_tokens,
             int32_t num_reqs, int32_t num_sampled) {
            return pack(self, layout, reinterpret_cast<void*>(address), num_tokens, num_reqs, num_sampled);
          },
          py::arg("layout"), py::arg("address"), py::arg("num_tokens"), py::arg("num_reqs"),
          py::arg("num_sampled"),
          "Write all arrays, padded to the given sizes, to layout.num_bytes bytes of memory; how many of "
          "them "
          "hold something.")
      .def(
          "pack_edits",
          [](const Batch& self, const EditsLayout& layout, uintptr_t address, int32_t num_sampled) {
            return pack(self, layout, reinterpret_cast<void*>(address), num_sampled);
          },
          py::arg("layout"), py::arg("address"), py::arg("num_sampled"),
          "Write num_logprobs and the edits of the samples, padded to num_sampled, to layout.num_bytes bytes "
          "of memory; how many biases there are.");
  const auto num_tokens = [](const Batch& b) { return b.num_tokens; };
  const auto num_reqs = [](const Batch& b) { return b.num_reqs; };
  const auto num_sampled = [](const Batch& b) { return b.num_sampled; };
  bind_view(batch, "token_ids", &Batch::token_ids, num_tokens,
            "[num_tokens] int32; ~row: the id that the batch before samples for that row of block_tables");
  bind_view(batch, "positions", &Batch::positions, num_tokens, "[num_tokens] int32");
  bind_view(batch, "slot_mapping", &Batch::slot_mapping, num_tokens,
            "[num_tokens] int64: block_id * block_size + offset; -1: its KV is there already");
  bind_view(batch, "request_ids", &Batch::request_ids, num_reqs, "[num_reqs] uint64");
  bind_view(batch, "sequence_index", &Batch::sequence_index, num_reqs,
            "[num_reqs] uint32: which of the request's sequences");
  bind_view(
      batch, "query_start_loc", &Batch::query_start_loc, [](const Batch& b) { return b.num_reqs + 1; },
      "[num_reqs + 1] int32");
  bind_view(batch, "seq_lens", &Batch::seq_lens, num_reqs,
            "[num_reqs] int32: tokens with KV after this step");
  bind_view(batch, "block_table_rows", &Batch::block_table_rows, num_reqs,
            "[num_reqs] int32: row of block_tables");
  bind_view(batch, "sample_token_idx", &Batch::sample_token_idx, num_sampled,
            "[num_sampled] int32: tokens whose logits are sampled");
  bind_view(batch, "sample_req_idx", &Batch::sample_req_idx, num_sampled,
            "[num_sampled] int32: their requests");
  bind_view(batch, "sample_rows", &Batch::sample_rows, num_sampled,
            "[num_sampled] int32: their rows of block_tables");
  bind_view(batch, "temperature", &Batch::temperature, num_sampled, "[num_sampled] float32; 0: greedy");
  bind_view(batch, "top_p", &Batch::top_p, num_sampled, "[num_sampled] float32");
  bind_view(batch, "top_k", &Batch::top_k, num_sampled, "[num_sampled] int32; 0: off");
  bind_view(batch, "seed", &Batch::seed, num_sampled, "[num_sampled] uint64");
  bind_view(batch, "output_idx", &Batch::output_idx, num_sampled,
            "[num_sampled] int32: how many tokens the request has produced");
  bind_view(
      batch, "mask_offsets", &Batch::mask_offsets, [](const Batch& b) { return b.num_sampled + 1; },
      "[num_sampled + 1] int32: row j masks mask_ids[mask_offsets[j]:mask_offsets[j + 1]]");
  bind_view(
      batch, "mask_ids", &Batch::mask_ids, [](const Batch& b) { return b.mask_offsets[b.num_sampled]; },
      "[mask_offsets[num_sampled]] int32: ids that may not be sampled");
  batch.def_property_readonly(
      "edits",
      [](const py::object& self) -> py::typing::Optional<BatchEdits> {
        const BatchEdits& edits = self.cast<const Batch&>().edits;
        if (edits.is_empty) return py::none();
        return py::cast(edits, py::return_value_policy::reference_internal, self);
      },
      "of requests with penalties, biases and the like; None when there are none");
  bind_view(batch, "num_logprobs", &Batch::num_logprobs, num_sampled,
            "[num_sampled] int32: logprobs of the id and of so many likeliest ones; 0: none");
  const auto num_prompt_rows = [](const Batch& b) { return b.num_prompt_rows; };
  bind_view(batch, "prompt_token_idx", &Batch::prompt_token_idx, num_prompt_rows,
            "[num_prompt_rows] int32: tokens whose logits are wanted for prompt logprobs");
  bind_view(batch, "prompt_next_ids", &Batch::prompt_next_ids, num_prompt_rows,
            "[num_prompt_rows] int32: the tokens behind them, whose logprobs are wanted");
  bind_view(batch, "prompt_num_logprobs", &Batch::prompt_num_logprobs, num_prompt_rows,
            "[num_prompt_rows] int32: as num_logprobs, at least 1");
}

// The property `arrays` of a layout.
template <typename Layout>
auto arrays_of(const Layout& layout) {
  py::typing::Dict<py::str, py::typing::Tuple<py::int_, py::int_, py::str>> arrays;
  for (const BatchLayout::Array& array : layout.arrays()) {
    arrays[array.name] = py::make_tuple(array.offset, array.count, array.dtype);
  }
  return arrays;
}
constexpr const char* kArraysDoc =
    "name -> (offset in bytes, number of elements, numpy's name of the type), in the buffer's order";

void bind_layouts(py::module_& m) {
  py::class_<BatchLayout>(
      m, "BatchLayout", "Where each array of a batch lies in one buffer, for the largest batch of a config.")
      .def(py::init([](const EngineConfig& config) {
             validate(config);
             return BatchLayout(config);
           }),
           py::arg("config"))
      .def_property_readonly("num_bytes", &BatchLayout::num_bytes)
      .def_property_readonly("arrays", &arrays_of<BatchLayout>, kArraysDoc);
  py::class_<EditsLayout>(m, "EditsLayout",
                          "The same of what samples ask for beside: num_logprobs and BatchEdits.")
      .def(py::init<int32_t>(), py::arg("max_num_seqs"))
      .def_property_readonly("num_bytes", &EditsLayout::num_bytes)
      .def_property_readonly("arrays", &arrays_of<EditsLayout>, kArraysDoc);
}

}  // namespace

void bind_batch(py::module_& m) {
  bind_layouts(m);
  bind_batch_edits(m);
  bind_batch_class(m);
}

}  // namespace quire::bindings
