// Batch and its layouts: a step's columns as views, or packed into buffers.
#include <pybind11/numpy.h>
#include <pybind11/typing.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings.h"
#include "quire/batch_layout.h"

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

// "[num_sampled + 1]", as the view's shape is.
std::string shape_of(const Length& length, const char* name) {
  static constexpr const char* kCounts[kNumUnits] = {"", "num_tokens", "num_seqs", "num_sampled",
                                                     "num_prompt_rows"};
  if (length.is_list) return "[num_" + std::string(name) + (length.width > 1 ? ", 2]" : "]");
  if (length.unit == Unit::kStep) return "[" + std::to_string(length.per_unit) + "]";
  return std::string("[") + kCounts[static_cast<size_t>(length.unit)] + (length.is_offsets ? " + 1]" : "]");
}

// Adds a property that views a column.
template <typename T>
void bind_column(py::class_<Batch>& batch, const Column<T>& column) {
  const std::string doc = shape_of(column.length, column.name) + ": " + column.meaning;
  batch.def_property_readonly(
      column.name,
      [&column](const py::object& self) {
        const auto& value = self.cast<const Batch&>();
        const py::ssize_t size = column.size(value), width = column.length.width;
        std::vector<py::ssize_t> shape{size / width};
        if (width > 1) shape.push_back(width);
        return view((value.*column.values).data(), std::move(shape), self);
      },
      doc.c_str());
}

void def_batch(py::class_<Batch>& batch) {
  batch.def_readonly("num_seqs", &Batch::num_seqs)
      .def_readonly("num_tokens", &Batch::num_tokens)
      .def_readonly("num_sampled", &Batch::num_sampled)
      .def_readonly("max_query_len", &Batch::max_query_len)
      .def_readonly("max_seq_len", &Batch::max_seq_len)
      .def_readonly("num_prompt_rows", &Batch::num_prompt_rows)
      .def_readonly("has_logprobs", &Batch::has_logprobs)
      .def_readonly("has_masks", &Batch::has_masks, "Some sample may not give every token.")
      .def_readonly("has_adjustments", &Batch::has_adjustments,
                    "Some sample has penalties, biases or the like.")
      .def_property_readonly(
          "block_tables",
          [](const py::object& self) {
            const auto& value = self.cast<const Batch&>();
            return view(value.block_tables, {value.num_block_table_rows, value.block_table_stride}, self);
          },
          "[max_num_seqs, max_blocks_per_request]: entries past a request's blocks are stale; the next "
          "schedule() changes it")
      .def(
          "pack",
          [](const Batch& self, const BatchLayout& layout, uintptr_t address, int32_t num_tokens,
             int32_t num_seqs, int32_t num_sampled) {
            return layout.pack(self, reinterpret_cast<void*>(address), num_tokens, num_seqs, num_sampled);
          },
          py::arg("layout"), py::arg("address"), py::arg("num_tokens") = 0, py::arg("num_seqs") = 0,
          py::arg("num_sampled") = 0,
          "Write the layout's columns, padded to the given sizes, to layout.num_bytes bytes of memory; how "
          "many of them hold something.");
  for_each_column([&](const auto& column) { bind_column(batch, column); });
}

void bind_layouts(py::module_& m, py::class_<BatchLayout>& layout) {
  py::class_<BatchLayout::Array>(m, "ColumnArray", "A column's place in a BatchLayout.")
      .def_readonly("dtype", &BatchLayout::Array::dtype, "numpy's name of the type")
      .def_readonly("offset", &BatchLayout::Array::offset, "bytes from the buffer's start")
      .def_readonly("count", &BatchLayout::Array::count, "elements that have room")
      .def_readonly("padding", &BatchLayout::Array::padding)
      .def(
          "length",
          [](const BatchLayout::Array& self, int32_t num_tokens, int32_t num_seqs, int32_t num_sampled) {
            return self.length.is_list ? self.count : self.length.of({1, num_tokens, num_seqs, num_sampled});
          },
          py::arg("num_tokens"), py::arg("num_seqs"), py::arg("num_sampled"),
          "Elements of a step of these sizes; of a list all that have room.");
  layout
      .def(py::init([](const EngineConfig& config) {
             validate(config);
             return BatchLayout(config);
           }),
           py::arg("config"), "What every step brings: room for the largest batch of a config.")
      .def_static("for_adjustments", &BatchLayout::for_adjustments, py::arg("max_num_seqs"),
                  "What requests with logprobs, penalties, biases and the like bring, for the most samples.")
      .def_static("for_tables", &BatchLayout::for_tables, py::arg("batch"),
                  "What this batch writes to the samplers' tables.")
      .def_property_readonly("num_bytes", &BatchLayout::num_bytes)
      .def_property_readonly(
          "arrays",
          [](const BatchLayout& self) {
            py::typing::Dict<py::str, BatchLayout::Array> arrays;
            for (const BatchLayout::Array& array : self.arrays()) arrays[array.name] = array;
            return arrays;
          },
          "by name of the column, in the buffer's order");
}

}  // namespace

void bind_batch(py::module_& m) {
  // Both classes come first: signatures of each name the other.
  py::class_<BatchLayout> layout(m, "BatchLayout", "Where columns of a batch lie in one buffer.");
  py::class_<Batch> batch(
      m, "Batch",
      "One step's work. Columns are read-only views of the core's memory, without a copy: they hold until "
      "the batch's update(); a later schedule() overwrites them. They keep the core alive.");
  bind_layouts(m, layout);
  def_batch(batch);
}

}  // namespace quire::bindings
