// The end of a piece in the decode kernel: adding up the warps' shares, and the pieces of a cut item.
#pragma once

#include "decode_fragments.cuh"

namespace quire::cuda::attention {

// A piece that is not its whole item, once its slot is written.
struct CutPiece {
  int32_t base;  // as in Slots
  int32_t num_pieces;
  int32_t first_token;
  int32_t num_rows;
  int32_t kv_head;
};

template <class T>
__device__ inline T* out_row(const KernelArgs& a, int32_t first_token, int32_t kv_head, int32_t row,
                             int head_dim) {
  const int64_t token = first_token + row / a.group;
  const int32_t head = kv_head * a.group + row % a.group;
  return static_cast<T*>(a.p.out) + token * a.p.stride_out_token + static_cast<int64_t>(head) * head_dim;
}

template <class T>
__device__ inline void store_out(T* to, float4 x, float factor) {
  uint2 packed;
  packed.x = Element<T>::pack(x.x * factor, x.y * factor);
  packed.y = Element<T>::pack(x.z * factor, x.w * factor);
  *reinterpret_cast<uint2*>(to) = packed;
}

__device__ inline void add_scaled(float4& sum, float weight, float4 x) {
  sum.x = fmaf(weight, x.x, sum.x);
  sum.y = fmaf(weight, x.y, sum.y);
  sum.z = fmaf(weight, x.z, sum.z);
  sum.w = fmaf(weight, x.w, sum.w);
}

// Rounds the product too.
__device__ inline void add_product(float4& sum, float weight, float4 x) {
  sum.x = __fadd_rn(sum.x, __fmul_rn(weight, x.x));
  sum.y = __fadd_rn(sum.y, __fmul_rn(weight, x.y));
  sum.z = __fadd_rn(sum.z, __fmul_rn(weight, x.z));
  sum.w = __fadd_rn(sum.w, __fmul_rn(weight, x.w));
}

// kRows rows of every warp are exchanged at a time.
template <int kHeadDim>
struct Exchange {
  static constexpr int kRows = kHeadDim == 64 ? 8 : kHeadDim <= 128 ? 4 : 2;
  static constexpr int kStride = kHeadDim + 4;  // floats: rows 2t, and 8 columns, in distinct banks
  static constexpr int kBytes = kWarps * kRows * kStride * 4 + kWarps * kDecodeRows * 8;
  static_assert(kRows * kHeadDim / 4 <= kBlockThreads && kStride % 32 * 2 % 32 == 8);
};

// Adds up the warps' shares of a piece and writes the rows to the output, or to the piece's slot. Of the
// folded heads' columns, a row has those of its own head. Called by the whole block.
template <class Types, class T, int kHeadDim, int kFold, int kTiles>
__device__ void finish_piece(const KernelArgs& a, const Tile& tile, int32_t kv_head, const Slots& slots,
                             DecodeSoftmax<kTiles>& softmax,
                             const float (&acc)[kHeadDim * kFold / 16][kTiles][4], float* exchange) {
  using E = Exchange<kHeadDim>;
  constexpr int kColumns = kHeadDim / 4;                                                        // of 16 bytes
  float2* const states = reinterpret_cast<float2*>(exchange + kWarps * E::kRows * E::kStride);  // [warp][row]
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
  softmax.finish();
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int first = 8 * m; first < 8 * m + 8; first += E::kRows) {
      if (first >= tile.num_rows) return;
      __syncthreads();                 // what was exchanged last is read
      const int mine = 8 * m + 2 * t;  // and the row after it
      if (mine >= first && mine < first + E::kRows) {
        float* const to = exchange + (warp * E::kRows + mine - first) * E::kStride;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int head = kFold == 1 ? 0 : (mine + j) % a.group / (a.group / kFold);
#pragma unroll
          for (int n = 0; n < kHeadDim * kFold / 16; ++n) {
            if (n / (kHeadDim / 16) != head) continue;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              to[j * E::kStride + dimension_of<Types>(n % (kHeadDim / 16), h)] = acc[n][m][2 * h + j];
            }
          }
          if (lane < 4) {
            states[warp * kDecodeRows + mine + j] = make_float2(softmax.max[m][j], softmax.sum[m][j]);
          }
        }
      }
      __syncthreads();  // the rows of all warps
      const int in_row = threadIdx.x / kColumns, column = threadIdx.x % kColumns * 4;
      const int row = first + in_row;
      if (in_row < E::kRows && row < tile.num_rows) {
        float2 state[kWarps];
        float max = kMinusInf, sum = 0;
        float4 x = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          state[w] = states[w * kDecodeRows + row];
          max = fmaxf(max, state[w].x);
        }
        const float shift = max == kMinusInf ? 0.0f : max;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
          const float weight = exp2_fast(state[w].x - shift);
          sum = fmaf(weight, state[w].y, sum);
          add_product(
              x, weight,
              *reinterpret_cast<const float4*>(exchange + (w * E::kRows + in_row) * E::kStride + column));
        }
        if (slots.num_pieces == 1) {
          store_out(out_row<T>(a, tile.first_token, kv_head, row, kHeadDim) + column, x,
                    a.value_scale / with_sink(a, sum, max, kv_head, row));
        } else {
          const int64_t to = static_cast<int64_t>(slots.mine) * kDecodeRows + row;
          *reinterpret_cast<float4*>(a.work.partial_out + to * kHeadDim + column) = x;
          if (column == 0) reinterpret_cast<float2*>(a.work.partial_state)[to] = make_float2(max, sum);
        }
      }
    }
  }
}

// out = sum over pieces, in key order, of 2^(max_j - max) O_j / sum over pieces of 2^(max_j - max) sum_j.
// States and values of kAtOnce pieces are on their way together.
template <class T, int kHeadDim>
__device__ void merge_pieces(const KernelArgs& a, const CutPiece& piece, bool balanced) {
  constexpr int kColumns = kHeadDim / 4;
  constexpr int kAtOnce = 8;
  Slots slots;
  slots.base = piece.base;
  slots.balanced = balanced;
  for (int i = threadIdx.x; i < piece.num_rows * kColumns; i += kBlockThreads) {
    const int row = i / kColumns, column = i % kColumns * 4;
    float4 out = make_float4(0, 0, 0, 0);
    float max = kMinusInf, sum = 0;
    for (int first = 0; first < piece.num_pieces; first += kAtOnce) {
      float2 states[kAtOnce];
      float4 values[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        states[j] = make_float2(kMinusInf, 0);
        values[j] = make_float4(0, 0, 0, 0);
        if (first + j < piece.num_pieces) {
          const int64_t from = static_cast<int64_t>(slots.slot(first + j)) * kDecodeRows + row;
          states[j] = __ldcg(reinterpret_cast<const float2*>(a.work.partial_state) + from);
          values[j] = __ldcg(reinterpret_cast<const float4*>(a.work.partial_out + from * kHeadDim + column));
        }
      }
      float new_max = max;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) new_max = fmaxf(new_max, states[j].x);
      const float shift = new_max == kMinusInf ? 0.0f : new_max;
      const float correction = exp2_fast(max - shift);
      max = new_max;
      sum *= correction;
      out = make_float4(out.x * correction, out.y * correction, out.z * correction, out.w * correction);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float weight = exp2_fast(states[j].x - shift);
        sum = fmaf(weight, states[j].y, sum);
        add_scaled(out, weight, values[j]);
      }
    }
    store_out(out_row<T>(a, piece.first_token, piece.kv_head, row, kHeadDim) + column, out,
              a.value_scale / with_sink(a, sum, max, piece.kv_head, row));
  }
}

// Counts num_pieces pieces whose slots are written, and adds up the items that have no more missing ones.
// Called by the whole block.
template <class T, int kHeadDim>
__device__ void count_and_merge(const KernelArgs& a, const CutPiece (&pieces)[2], int num_pieces,
                                bool balanced) {
  __shared__ bool is_last[2];
  __syncthreads();  // the block's slots are written
  if (threadIdx.x < num_pieces) {
    // Orders also what the barrier has brought to this thread, and after the next one what others read.
    int32_t* const counter = a.work.num_finished + pieces[threadIdx.x].base;
    int32_t num_before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;\n"
                 : "=r"(num_before)
                 : "l"(__cvta_generic_to_global(counter))
                 : "memory");
    const bool last = num_before == pieces[threadIdx.x].num_pieces - 1;
    if (last) *counter = 0;  // for the next layer
    is_last[threadIdx.x] = last;
  }
  __syncthreads();
  for (int i = 0; i < num_pieces; ++i) {
    if (is_last[i]) merge_pieces<T, kHeadDim>(a, pieces[i], balanced);
  }
}

}  // namespace quire::cuda::attention
