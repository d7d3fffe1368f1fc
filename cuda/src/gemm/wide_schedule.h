// Which tile of out a block of a wide GEMM computes when.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace quire::cuda::gemm::wide {

inline constexpr int kTileRows = 128;  // of x, of a block
inline constexpr int kRowBox = 64;     // rows of x of a warpgroup

// A unit is two tiles that lie side by side along the rows of x (shared tile of W) or along the columns of
// out (shared tile of x): one for each block of a cluster. From unit num_whole on, the cluster's blocks
// compute one of the two tiles at a time, 64 rows each, and then the other: items are whole units and halves
// of units. Clusters take items in turns, row units first, so that all rows meet a tile of W while it is in
// L2.
//
// The last rows' tile ends with them: it begins in the tile before, whose last rows are then computed twice,
// with the same bits. Rows past the end would have to be filled with zeros, which is slower (measured).
struct Schedule {
  int32_t row_units, column_units;
  int32_t group;      // row units that are walked before the next column unit
  int32_t num_whole;  // items that are whole units
  int32_t num_items;
  bool shares_x;
  int32_t num_rows;  // of x
};

// A block's share of an item.
struct Tile {
  int32_t row;          // of x, the first
  int32_t column_tile;  // of out
  int32_t num_rows;     // kTileRows or half of them
  bool is_empty;        // has no rows; the block then only loads for the other
  bool shares_x;        // with the cluster's other block; otherwise the tile of W is shared

  // rank: of the block in its cluster, 0 or 1.
  __device__ Tile(const Schedule& s, int32_t item, int32_t rank) {
    const bool is_whole = item < s.num_whole;
    const int32_t half = is_whole ? 0 : (item - s.num_whole) % 2;
    const int32_t unit = is_whole ? item : s.num_whole + (item - s.num_whole) / 2;
    const int32_t group_units = s.group * s.column_units;
    const int32_t first_row_unit = unit / group_units * s.group;
    const int32_t in_group = unit % group_units;
    const int32_t height = min(s.group, s.row_units - first_row_unit);
    const int32_t column_unit = in_group / height;
    const int32_t row_unit = first_row_unit + in_group % height;
    const int32_t which = is_whole ? rank : half;  // of the unit's two tiles
    row = (s.shares_x ? row_unit : 2 * row_unit + which) * kTileRows + (is_whole ? 0 : rank * kRowBox);
    column_tile = s.shares_x ? 2 * column_unit + which : column_unit;
    num_rows = is_whole ? kTileRows : kRowBox;
    is_empty = row >= s.num_rows;
    row = max(min(row, s.num_rows - num_rows), 0);
    shares_x = s.shares_x && is_whole;
  }
};

}  // namespace quire::cuda::gemm::wide
