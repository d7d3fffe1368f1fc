#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "core_parts.h"
#include "quire/block_manager.h"

namespace quire::core_parts {
namespace {

// Hashes are pairs of integers in Python.
using HashPair = std::pair<uint64_t, uint64_t>;

BlockHash to_hash(const HashPair& pair) { return {pair.first, pair.second}; }
HashPair to_pair(const BlockHash& hash) { return {hash.low, hash.high}; }

}  // namespace

void bind_blocks(py::module_& m) {
  m.def("root_hash", [](uint64_t salt) { return to_pair(root_hash(salt)); }, py::arg("salt"));
  m.def(
      "hash_block",
      [](const HashPair& parent, const std::vector<int32_t>& token_ids) {
        return to_pair(hash_block(to_hash(parent), token_ids));
      },
      py::arg("parent"), py::arg("token_ids"));

  py::class_<BlockPool>(m, "BlockPool")
      .def(py::init<int32_t>(), py::arg("num_blocks"))
      .def_property_readonly("num_blocks", &BlockPool::num_blocks)
      .def_property_readonly("num_free", &BlockPool::num_free)
      .def_property_readonly("num_cached", &BlockPool::num_cached)
      .def("ref_count", &BlockPool::ref_count, py::arg("block_id"))
      .def("allocate", &BlockPool::allocate)
      .def("acquire", &BlockPool::acquire, py::arg("block_id"))
      .def("release", &BlockPool::release, py::arg("block_id"))
      .def(
          "publish",
          [](BlockPool& self, int32_t block_id, const HashPair& hash) {
            return self.publish(block_id, to_hash(hash));
          },
          py::arg("block_id"), py::arg("hash"))
      .def(
          "find", [](const BlockPool& self, const HashPair& hash) { return self.find(to_hash(hash)); },
          py::arg("hash"))
      .def("check_integrity", &BlockPool::check_integrity);

  py::class_<BlockManager>(m, "BlockManager")
      .def(py::init<int32_t, int32_t, int32_t, int32_t, int32_t>(), py::arg("num_blocks"),
           py::arg("block_size"), py::arg("num_rows"), py::arg("max_blocks_per_row"), py::arg("window") = 0)
      .def(
          "open",
          [](BlockManager& self, const std::vector<HashPair>& hashes, int32_t num_tokens,
             int32_t num_spare_blocks) -> std::optional<std::pair<int32_t, int32_t>> {
            std::vector<BlockHash> converted;
            for (const HashPair& hash : hashes) converted.push_back(to_hash(hash));
            const auto opened = self.open(converted, num_tokens, num_spare_blocks);
            if (!opened) return std::nullopt;
            return std::pair{opened->row, opened->num_cached_blocks};
          },
          py::arg("hashes"), py::arg("num_tokens"), py::arg("num_spare_blocks") = 0)
      .def(
          "fork",
          [](BlockManager& self, int32_t source_row, int32_t num_tokens,
             int32_t num_spare_blocks) -> std::optional<std::tuple<int32_t, int32_t, int32_t>> {
            const auto forked = self.fork(source_row, num_tokens, num_spare_blocks);
            if (!forked) return std::nullopt;
            return std::tuple{forked->row, forked->source_block, forked->own_block};
          },
          py::arg("source_row"), py::arg("num_tokens"), py::arg("num_spare_blocks") = 0)
      .def("extend", &BlockManager::extend, py::arg("row"), py::arg("num_tokens"))
      .def(
          "publish",
          [](BlockManager& self, int32_t row, int32_t block_idx, const HashPair& hash) {
            self.publish(row, block_idx, to_hash(hash));
          },
          py::arg("row"), py::arg("block_idx"), py::arg("hash"))
      .def("leave_behind", &BlockManager::leave_behind, py::arg("row"), py::arg("num_computed_tokens"))
      .def("reaches_back", &BlockManager::reaches_back, py::arg("row"), py::arg("position"))
      .def("close", &BlockManager::close, py::arg("row"))
      .def("slot", &BlockManager::slot, py::arg("row"), py::arg("position"))
      .def(
          "blocks",
          [](const BlockManager& self, int32_t row) {
            const auto blocks = self.blocks(row);
            return std::vector<int32_t>(blocks.begin(), blocks.end());
          },
          py::arg("row"))
      .def_property_readonly("pool", &BlockManager::pool, py::return_value_policy::reference_internal)
      .def("check_integrity", &BlockManager::check_integrity);
}

}  // namespace quire::core_parts
