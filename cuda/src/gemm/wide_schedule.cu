#include <algorithm>
#include <vector>

#include "wide_schedule.h"

namespace quire::cuda::gemm::wide {
namespace {

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

Schedule make_schedule(int32_t row_tiles, int32_t column_tiles, int32_t num_clusters, bool shares_x,
                       int32_t rotation, bool cuts_last, int32_t group) {
  Schedule s;
  s.shares_x = shares_x;
  s.rotation = rotation;
  s.row_units = shares_x ? row_tiles : ceil_div(row_tiles, 2);
  s.column_units = shares_x ? ceil_div(column_tiles, 2) : column_tiles;
  constexpr int32_t kGroupTiles = 16;  // rows of x that stay in L2 while W passes by once
  s.group = group > 0 ? group : shares_x ? kGroupTiles : kGroupTiles / 2;
  const int32_t units = s.row_units * s.column_units;
  // The units that do not give every cluster one more.
  const int32_t rest = cuts_last ? units % num_clusters : 0;
  s.num_whole = units - rest;
  s.num_items = s.num_whole + 2 * rest;
  return s;
}

// Time of an item: a step of k takes one warpgroup half as long as both; the end of a tile takes some more.
constexpr int32_t kNothing = 1, kHalf = 11, kWhole = 20;

int32_t time_of(const Schedule& s, int32_t item, int32_t num_rows) {
  int32_t time = kNothing;
  for (int32_t rank = 0; rank < 2; ++rank) {
    const Tile tile(s, item, rank);
    const int32_t rows = std::min(tile.num_rows, num_rows - tile.row);
    if (rows > 0) time = std::max(time, rows > kRowBox ? kWhole : kHalf);
  }
  return time;
}

int32_t time_of_slowest(const Schedule& s, int32_t num_rows, int32_t num_clusters) {
  // With many rows a short last tile is a small part of all, and the items are many to add up here.
  constexpr int32_t kMaxRows = 2048;
  if (num_rows > kMaxRows) {
    return ceil_div(s.num_whole, num_clusters) * kWhole +
           ceil_div(s.num_items - s.num_whole, num_clusters) * kHalf;
  }
  std::vector<int32_t> times(num_clusters);
  for (int32_t item = 0; item < s.num_items; ++item) {
    times[item % num_clusters] += time_of(s, item, num_rows);
  }
  return *std::max_element(times.begin(), times.end());
}

}  // namespace

Choice choose_schedule(int32_t num_rows, int32_t num_columns, const int32_t (&tile_columns)[2],
                       int32_t num_clusters, int32_t pair, int32_t group, int32_t halves) {
  const int32_t row_tiles = ceil_div(num_rows, kTileRows);
  Choice best;
  int64_t best_time = INT64_MAX;
  for (const int32_t columns : tile_columns) {
    if (columns == 0) continue;
    const int32_t column_tiles = ceil_div(num_columns, columns);
    for (const bool shares_x : {false, true}) {
      if (pair >= 0 && shares_x != (pair == 1)) continue;
      for (const int32_t rotation : {0, 1}) {
        for (const bool cuts_last : {false, true}) {
          if (halves >= 0 && cuts_last != (halves == 1)) continue;
          const Schedule s =
              make_schedule(row_tiles, column_tiles, num_clusters, shares_x, rotation, cuts_last, group);
          // Smaller tiles and shared tiles of x read more per operation: 2 % and 1 % (measured).
          const int64_t percent = 100 + (columns < tile_columns[0] ? 2 : 0) + (shares_x ? 1 : 0);
          const int64_t time = columns * percent * time_of_slowest(s, num_rows, num_clusters);
          if (time >= best_time) continue;
          best_time = time;
          best = {s, columns};
        }
      }
    }
  }
  return best;
}

}  // namespace quire::cuda::gemm::wide
