// Attention of requests with few query tokens: up to 16 packed rows, bound by reading keys and values.
//
// Grid: plan's workers, two blocks per SM (one for head_dim 256). Block: 4 warps. A worker walks its run of
// chunks, 64 keys a step; of each step warp w has keys [16 w, 16 w + 16) for itself: it copies them through
// its own ring of stages, multiplies, and keeps its own softmax state and accumulators for all 16 rows. Warps
// meet only at the end of a piece. Copies run ahead across the ends of pieces.
//
// Shared memory: ring [warp][stage][keys, values][16][kRowBytes], exchange [warp][8][kSlice + 8] float,
// states [warp][16] float2.
#include "kernels.h"
#include "launch.cuh"
#include "tile_math.cuh"

namespace quire::cuda::attention {
namespace {

template <int kHeadDim>
struct DecodeShape {
  static constexpr int kStages = kHeadDim == 64 ? 5 : kHeadDim == 96 ? 4 : 3;
  static constexpr int kHalfStageBytes = 16 * kRowBytes<kHeadDim>;  // keys, or values
  static constexpr int kRingBytes = kStages * 2 * kHalfStageBytes;  // of a warp
  static constexpr int kSlice = kHeadDim % 64 == 0 ? 64 : 48;       // columns exchanged at a time
  static constexpr int kExchangeStride = kSlice + 8;                // floats; keeps 4 rows in distinct banks
  static constexpr int kExchangeBytes = kWarps * 8 * kExchangeStride * 4;
  static constexpr int kSharedBytes = kWarps * kRingBytes + kExchangeBytes + kWarps * kDecodeRows * 8;
  static_assert(kHeadDim % kSlice == 0 && kSlice % 16 == 0);
  static_assert((kSharedBytes + 1024 + 384) * blocks_per_sm(kHeadDim) <= 228 * 1024);
};

// A piece that is not its whole item, once its slot is written.
struct CutPiece {
  int32_t tile_idx;
  int32_t kv_head;
  int32_t chunk;
};

// A place in a worker's run of chunks.
struct Cursor {
  Tile tile;
  int32_t tile_idx;
  int32_t kv_head;
  int32_t chunk;
  int32_t unit, unit_end;  // 64-key steps of the open piece that are left: [unit, unit_end)
  int32_t line, line_end;  // chunks after the open piece: [line, line_end)

  // Opens the next piece; false at the end of the run.
  __device__ bool open_piece(const KernelArgs& a, const Line& l) {
    if (line >= line_end) return false;
    while (line >= tile.line_begin + tile.num_chunks * a.p.config.num_kv_heads) {
      tile = a.work.tiles[++tile_idx];
    }
    const int32_t offset = line - tile.line_begin;
    kv_head = offset / tile.num_chunks;
    chunk = offset - kv_head * tile.num_chunks;
    const int32_t num_chunks = l.balanced ? min(line_end - line, tile.num_chunks - chunk) : 1;
    unit = chunk * l.chunk_units;
    unit_end = min((chunk + num_chunks) * l.chunk_units, (tile.num_keys + kUnitKeys - 1) / kUnitKeys);
    line += num_chunks;
    return true;
  }
};

template <class T, int kHeadDim>
__device__ void load_query(const KernelArgs& a, const Cursor& at, uint32_t (&query)[kHeadDim / 16][4]) {
  const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int32_t row = g + 8 * h;
    const bool is_valid = row < at.tile.num_rows;
    const int64_t token = at.tile.first_token + row / a.group;
    const int64_t head = at.kv_head * a.group + row % a.group;
    const T* from =
        static_cast<const T*>(a.p.query) + token * a.p.stride_query_token + head * kHeadDim + 2 * t;
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      query[k][h] = is_valid ? *reinterpret_cast<const uint32_t*>(from + k * 16) : 0;
      query[k][h + 2] = is_valid ? *reinterpret_cast<const uint32_t*>(from + k * 16 + 8) : 0;
    }
  }
}

// Adds up the warps' shares of a piece and writes the rows to the output, or to the piece's slot.
template <class T, int kHeadDim>
__device__ void finish_piece(const KernelArgs& a, const Cursor& at, const Slots& slots, const SoftmaxState& s,
                             const float (&acc)[kHeadDim / 8][4], float* exchange, float2* states) {
  using Shape = DecodeShape<kHeadDim>;
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = sum_of_row(s.sum[h]);
    if (t == 0) states[warp * kDecodeRows + g + 8 * h] = make_float2(s.max[h], sum);
  }
  __syncthreads();  // states of all warps
  const auto state_of_row = [&](int row) {
    float2 all = make_float2(kMinusInf, 0);
    for (int w = 0; w < kWarps; ++w) all.x = fmaxf(all.x, states[w * kDecodeRows + row].x);
    const float shift = all.x == kMinusInf ? 0.0f : all.x;
    for (int w = 0; w < kWarps; ++w) {
      const float2 one = states[w * kDecodeRows + row];
      all.y += exp2_fast(one.x - shift) * one.y;
    }
    return all;
  };
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (8 * h >= at.tile.num_rows) break;
    const float row_max = state_of_row(g + 8 * h).x;
    const float weight = exp2_fast(s.max[h] - (row_max == kMinusInf ? 0.0f : row_max));
#pragma unroll
    for (int slice = 0; slice < kHeadDim / Shape::kSlice; ++slice) {
      float* const mine = exchange + (warp * 8 + g) * Shape::kExchangeStride + 2 * t;
#pragma unroll
      for (int n = 0; n < Shape::kSlice / 8; ++n) {
        const float (&c)[4] = acc[slice * (Shape::kSlice / 8) + n];
        *reinterpret_cast<float2*>(mine + n * 8) = make_float2(c[2 * h] * weight, c[2 * h + 1] * weight);
      }
      __syncthreads();  // the slice of all warps
      for (int i = threadIdx.x; i < 8 * Shape::kSlice / 4; i += kBlockThreads) {
        const int in_row = i / (Shape::kSlice / 4);
        const int in_column = i % (Shape::kSlice / 4) * 4;
        const int row = 8 * h + in_row;
        if (row >= at.tile.num_rows) break;
        float4 x = make_float4(0, 0, 0, 0);
        for (int w = 0; w < kWarps; ++w) {
          const float4 y = *reinterpret_cast<const float4*>(
              exchange + (w * 8 + in_row) * Shape::kExchangeStride + in_column);
          x.x += y.x;
          x.y += y.y;
          x.z += y.z;
          x.w += y.w;
        }
        const int column = slice * Shape::kSlice + in_column;
        const float2 state = state_of_row(row);
        if (slots.num_pieces == 1) {
          const float inverse = 1.0f / state.y;
          uint2 packed;
          packed.x = Element<T>::pack(x.x * inverse, x.y * inverse);
          packed.y = Element<T>::pack(x.z * inverse, x.w * inverse);
          *reinterpret_cast<uint2*>(out_row<T>(a, at.tile, at.kv_head, row, kHeadDim) + column) = packed;
        } else {
          const int64_t to = static_cast<int64_t>(slots.mine) * kDecodeRows + row;
          *reinterpret_cast<float4*>(a.work.partial_out + to * kHeadDim + column) = x;
          if (column == 0) reinterpret_cast<float2*>(a.work.partial_state)[to] = state;
        }
      }
      __syncthreads();  // the exchange and the states are read: they may be written again
    }
  }
}

template <class T, int kHeadDim>
__global__ void __launch_bounds__(kBlockThreads, blocks_per_sm(kHeadDim)) decode_kernel(const KernelArgs a) {
  using Shape = DecodeShape<kHeadDim>;
  constexpr int kSteps = kHeadDim / 16;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t ring = shared_address(shared) + warp * Shape::kRingBytes;
  float* const exchange = reinterpret_cast<float*>(shared + kWarps * Shape::kRingBytes);
  float2* const states = reinterpret_cast<float2*>(exchange + Shape::kExchangeBytes / 4);

  const Line line = *a.work.line;
  Cursor load;
  load.tile_idx = a.work.first_tile[blockIdx.x];
  load.tile = a.work.first_tiles[blockIdx.x];
  load.line = blockIdx.x * line.per_worker;
  load.line_end = min(load.line + line.per_worker, line.num_chunks);
  if (load.line >= load.line_end) return;
  Cursor at = load;

  bool has_load = load.open_piece(a, line);
  int32_t load_key = load.unit * kUnitKeys + 16 * warp;
  int32_t load_block = block_of_key(a, load.tile, load_key);
  uint32_t load_stage = ring;
  const auto advance = [&](uint32_t& stage) {
    stage += 2 * Shape::kHalfStageBytes;
    if (stage == ring + Shape::kRingBytes) stage = ring;
  };
  const auto load_step = [&]() {
    if (has_load) {
      copy_16_keys<T, kHeadDim>(a, load_block, load.kv_head, load_key, load.tile.num_keys, load_stage,
                                load_stage + Shape::kHalfStageBytes);
      if (++load.unit == load.unit_end) has_load = load.open_piece(a, line);
      load_key = load.unit * kUnitKeys + 16 * warp;
      if (has_load) load_block = block_of_key(a, load.tile, load_key);
    }
    commit_copies();  // also when empty, so that the count of groups stays true
    advance(load_stage);
  };
#pragma unroll
  for (int i = 0; i < Shape::kStages - 1; ++i) load_step();

  // ldmatrix: lane's row and 16-byte column within 16 keys and 16 elements.
  const uint32_t key_lane = (lane / 16 * 8 + lane % 8) * kRowBytes<kHeadDim> + lane / 8 % 2 * 16;
  const uint32_t value_lane =
      Shape::kHalfStageBytes + (lane / 8 % 2 * 8 + lane % 8) * kRowBytes<kHeadDim> + lane / 16 * 16;
  CutPiece cut_0{}, cut_1{};
  int num_cut = 0;
  const auto count_cut_pieces = [&]() {
    const Tile tiles[2] = {a.work.tiles[cut_0.tile_idx], a.work.tiles[cut_1.tile_idx]};
    const int32_t per_worker = line.balanced ? line.per_worker : 0;
    const Slots slots[2] = {slots_of_piece(tiles[0], cut_0.kv_head, cut_0.chunk, per_worker, blockIdx.x),
                            slots_of_piece(tiles[1], cut_1.kv_head, cut_1.chunk, per_worker, blockIdx.x)};
    bool is_last[2];
    count_pieces(a.work, slots, num_cut, is_last);
    if (is_last[0]) merge_pieces<T, kHeadDim, kDecodeRows>(a, tiles[0], cut_0.kv_head, slots[0]);
    if (is_last[1]) merge_pieces<T, kHeadDim, kDecodeRows>(a, tiles[1], cut_1.kv_head, slots[1]);
    num_cut = 0;
  };
  uint32_t stage = ring;
  while (at.open_piece(a, line)) {
    uint32_t query[kSteps][4];
    load_query<T, kHeadDim>(a, at, query);
    const int32_t row = lane / 4;
    const int32_t last_key[2] = {min(at.tile.first_position + row / a.group, at.tile.num_keys - 1),
                                 min(at.tile.first_position + (row + 8) / a.group, at.tile.num_keys - 1)};
    float acc[kHeadDim / 8][4] = {};
    SoftmaxState state = {{kMinusInf, kMinusInf}, {0, 0}};
    for (; at.unit < at.unit_end; ++at.unit) {
      wait_copies<Shape::kStages - 2>();
      __syncwarp();  // all lanes' copies of this stage are there, and all have read the stage before it
      load_step();
      const int32_t first_key = at.unit * kUnitKeys + 16 * warp;
      float scores[2][4] = {};
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t b[4];
        load_matrices(b, stage + key_lane + k * 32);
        Element<T>::mma(scores[0], query[k], b[0], b[1]);
        Element<T>::mma(scores[1], query[k], b[2], b[3]);
      }
      softmax_step<2>(scores, acc, state, a.scale_log2, first_key + 15 > at.tile.first_position, first_key,
                      last_key);
      uint32_t probabilities[4];
      probabilities_as_a<T>(probabilities, scores[0], scores[1]);
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, stage + value_lane + n * 32);
        Element<T>::mma(acc[2 * n], probabilities, b[0], b[1]);
        Element<T>::mma(acc[2 * n + 1], probabilities, b[2], b[3]);
      }
      advance(stage);
    }
    const Slots slots =
        slots_of_piece(at.tile, at.kv_head, at.chunk, line.balanced ? line.per_worker : 0, blockIdx.x);
    finish_piece<T, kHeadDim>(a, at, slots, state, acc, exchange, states);
    if (slots.num_pieces > 1) {
      // Balanced, at most the first and the last piece of a run are cut. The first is counted at the end too:
      // the fence would wait for all copies on their way.
      (num_cut == 0 ? cut_0 : cut_1) = CutPiece{at.tile_idx, at.kv_head, at.chunk};
      if (++num_cut == 2 || !line.balanced) count_cut_pieces();
    }
  }
  if (num_cut > 0) count_cut_pieces();
}

}  // namespace

template <class T, int kHeadDim>
void launch_decode(const KernelArgs& args, cudaStream_t stream) {
  launch(decode_kernel<T, kHeadDim>, args, DecodeShape<kHeadDim>::kSharedBytes, stream);
}

template void launch_decode<__nv_bfloat16, 64>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, 96>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, 128>(const KernelArgs&, cudaStream_t);
template void launch_decode<__nv_bfloat16, 256>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, 64>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, 96>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, 128>(const KernelArgs&, cudaStream_t);
template void launch_decode<__half, 256>(const KernelArgs&, cudaStream_t);

}  // namespace quire::cuda::attention
