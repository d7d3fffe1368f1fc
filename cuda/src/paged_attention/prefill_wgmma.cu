// Attention of sequences with many query tokens on Hopper's own units: wgmma, fed by the copy engine.
//
// Grid: one block per SM; those that the plan gives to decode leave at once, and only then may the kernel of
// decode start, beside this one. Block: a warpgroup that loads and two that compute, 64 rows each.
// Warp 0 takes pieces from the line's counter, hands them to the others through a ring, and copies keys, one
// box for each cache block; warp 1 copies values, warps 2 and 3 the query. The computing warpgroups take
// turns at the tensor cores: the products of one run under the softmax of the other, and within one the
// product with the values runs under the softmax of the next keys.
//
// Keys are walked from the last tile to the first, so that masks and the clearing of unused rows come first.
//
// Shared memory (a row: kChunk elements of head, swizzled): query [chunk][128][row], keys and values
// [stage][kKeys / 8][chunk][8][row], the ring of pieces, barriers.
#include "common/dependency.cuh"
#include "common/launch.h"
#include "copy_engine.cuh"
#include "kernels.h"
#include "prefill_load.cuh"
#include "prefill_rows.cuh"
#include "prefill_shape.cuh"
#include "tensor_map.h"
#include "tile_math.cuh"
#include "wgmma.cuh"

namespace quire::cuda::attention {
namespace {

// kHasOptions: there is a window or a soft cap.
template <class T, int kHeadDim, bool kHasOptions>
__device__ void consume(const KernelArgs& a, const Shared& shared) {
  using S = Shape<kHeadDim>;
  constexpr int kScores = S::kKeys / 2;  // of a lane
  // From one lane, so that the compiler knows it to be uniform in the warp.
  const int consumer = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kGroupThreads - 1, 0);
  const int thread = threadIdx.x % kGroupThreads, lane = threadIdx.x % 32;
  const int32_t group_row = consumer * kGroupRows;
  const int my_turn = 1 + consumer, other_turn = 2 - consumer;

  const uint32_t query = shared.base + group_row * S::kRowBytes;
  const uint64_t query_tile = describe_tile<S::kRowBytes>(query, 8 * S::kRowBytes, 0);
  const uint64_t keys_tile = describe_tile<S::kRowBytes>(shared.base + S::kKeysAt, S::kGroupBytes, 0);
  const uint64_t values_tile =
      describe_tile<S::kRowBytes>(shared.base + S::kValuesAt, S::kGroupBytes, S::kBoxRowsBytes);
  const auto multiply_keys = [&](float (&scores)[kScores], uint32_t stage) {
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const int chunk = k * 16 / S::kChunk;
      const uint32_t in_row = k * 16 % S::kChunk * 2;
      Wgmma<T, S::kKeys>::multiply_shared(
          scores, query_tile + ((chunk * S::kRows * S::kRowBytes + in_row) >> 4),
          keys_tile + ((stage * S::kStageBytes + chunk * S::kBoxRowsBytes + in_row) >> 4), k == 0);
    }
    commit_products();
  };
  const auto multiply_values = [&](float (&acc)[kHeadDim / 2],
                                   const uint32_t (&probabilities)[S::kKeys / 16][4], uint32_t stage) {
#pragma unroll
    for (int k = 0; k < S::kKeys / 16; ++k) {
      Wgmma<T, kHeadDim>::multiply_registers(
          acc, probabilities[k], values_tile + ((stage * S::kStageBytes + k * 2 * S::kGroupBytes) >> 4));
    }
    commit_products();
  };
  const auto release = [&](uint32_t barrier) {
    __syncwarp();
    if (lane == 0) arrive(barrier);
  };

  if (consumer == 1) arrive_threads(other_turn, 2 * kGroupThreads);  // the first turn is consumer 0's
  RingPosition<kPieces> ring;
  RingPosition<1> query_at;
  RingPosition<S::kStages> keys_at, values_at;
  while (true) {
    wait_barrier(QUIRE_BARRIER(piece_full, ring.stage), ring.parity);
    const Piece piece = shared.pieces[ring.stage];
    release(QUIRE_BARRIER(piece_empty, ring.stage));
    ring.advance();
    if (piece.first_key == piece.end_key) break;

    int32_t last_key[2];
    const int32_t row = group_row + thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      last_key[h] = min(piece.tile.first_position + (row + 8 * h) / a.group, piece.end_key - 1);
    }
    // The first key that the consumer's first row does not see, or that is past the piece.
    const int32_t first_masked = min(piece.tile.first_position + group_row / a.group + 1, piece.end_key);
    // The same for windows, from the other end: keys from last_start on are in the window of every row.
    int32_t first_seen[2] = {0, 0}, last_start = 0;
    if (kHasOptions && a.p.config.window > 0) {
      const int32_t first = piece.tile.first_position - a.p.config.window + 1;
#pragma unroll
      for (int h = 0; h < 2; ++h) first_seen[h] = first + (row + 8 * h) / a.group;
      last_start = first + (group_row + kGroupRows - 1) / a.group;
    }
    const auto finish_scores = [&](float (&products)[kScores], int32_t at_key) {
      if (kHasOptions && a.p.soft_cap > 0) {
#pragma unroll
        for (int i = 0; i < kScores; ++i) products[i] = scaled_score(a, products[i]);
      }
      if (at_key + S::kKeys > first_masked) mask(products, at_key, last_key);
      if (kHasOptions && at_key < last_start) mask_window(products, at_key, first_seen);
    };
    const float scale_log2 = kHasOptions && a.p.soft_cap > 0 ? 1.0f : a.scale_log2;
    SoftmaxState state = {{kMinusInf, kMinusInf}, {0, 0}};
    float acc[kHeadDim / 2] = {};
    float scores[kScores];
    uint32_t probabilities[S::kKeys / 16][4];
    float correction[2];
    const auto to_probabilities = [&]() {
#pragma unroll
      for (int k = 0; k < S::kKeys / 16; ++k) {
        const float* const s = scores + 8 * k;
#pragma unroll
        for (int i = 0; i < 4; ++i) probabilities[k][i] = Element<T>::pack(s[2 * i], s[2 * i + 1]);
      }
    };

    int32_t first_key = first_key_of_last_tile<kHeadDim>(piece);
    wait_barrier(QUIRE_BARRIER(query_full, 0), query_at.parity);
    query_at.advance();
    wait_barrier(QUIRE_BARRIER(keys_full, keys_at.stage), keys_at.parity);
    begin_products();
    multiply_keys(scores, keys_at.stage);
    wait_products<0>();
    hold(scores);
    release(QUIRE_BARRIER(keys_empty, keys_at.stage));
    keys_at.advance();
    if (first_key == piece.first_key) release(QUIRE_BARRIER(query_empty, 0));
    finish_scores(scores, first_key);
    softmax_of(scores, state, scale_log2, correction);
    to_probabilities();
    wait_barrier(QUIRE_BARRIER(values_full, values_at.stage), values_at.parity);
    if (first_key + S::kKeys > piece.end_key) {
      // Unused slots may hold NaN, and 0 * NaN would reach the output.
      constexpr int kColumns = kHeadDim / 8, kRowColumns = S::kChunk / 8;
      const int32_t used = piece.end_key - first_key;
      const uint32_t values = shared.base + S::kValuesAt + values_at.stage * S::kStageBytes;
      for (int i = thread; i < (S::kKeys - used) * kColumns; i += kGroupThreads) {
        const int column = i % kColumns;
        const int32_t key = used + i / kColumns;
        const uint32_t to = key / 8 * S::kGroupBytes + column / kRowColumns * S::kBoxRowsBytes +
                            key % 8 * S::kRowBytes + column % kRowColumns * 16;
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};\n" ::"r"(values + to), "r"(0) : "memory");
      }
      fence_shared_for_async();
      sync_threads(3 + consumer, kGroupThreads);
    }

    while (first_key > piece.first_key) {
      first_key -= S::kKeys;
      wait_barrier(QUIRE_BARRIER(keys_full, keys_at.stage), keys_at.parity);
      sync_threads(my_turn, 2 * kGroupThreads);
      begin_products();
      multiply_keys(scores, keys_at.stage);
      multiply_values(acc, probabilities, values_at.stage);
      arrive_threads(other_turn, 2 * kGroupThreads);
      wait_products<1>();
      hold(scores);
      release(QUIRE_BARRIER(keys_empty, keys_at.stage));
      keys_at.advance();
      if (first_key == piece.first_key) release(QUIRE_BARRIER(query_empty, 0));
      finish_scores(scores, first_key);
      softmax_of(scores, state, scale_log2, correction);
      hold(scores);
      const RingPosition<S::kStages> values_before = values_at;
      values_at.advance();
      // Values of this tile, needed next. The loop of this wait also keeps the assembler from moving the wait
      // for the product to before the softmax, which is to run under it.
      wait_barrier(QUIRE_BARRIER(values_full, values_at.stage), values_at.parity);
      wait_products<0>();
      hold(acc);
      hold(scores);
      release(QUIRE_BARRIER(values_empty, values_before.stage));
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) acc[i] *= correction[i / 2 % 2];
      to_probabilities();
    }
    begin_products();
    multiply_values(acc, probabilities, values_at.stage);
    wait_products<0>();
    hold(acc);
    release(QUIRE_BARRIER(values_empty, values_at.stage));
    values_at.advance();

    if (group_row >= piece.tile.num_rows) continue;
    const Slots slots = slots_of_piece(piece.tile, piece.kv_head, piece.chunk, 0, 0);
    write_group<T, kHeadDim>(a, piece, slots, group_row, state, acc);
    if (slots.num_pieces > 1) merge_group<T, kHeadDim>(a, piece, slots, consumer, shared.merged);
  }
}

template <class T, int kHeadDim, bool kHasOptions>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_wgmma_kernel(const __grid_constant__ CUtensorMap key_map,
                         const __grid_constant__ CUtensorMap value_map,
                         const __grid_constant__ KernelArgs a) {
  using S = Shape<kHeadDim>;
  extern __shared__ unsigned char dynamic[];
  const uint32_t start = shared_address(dynamic);
  const uint32_t base = (start + 1023) / 1024 * 1024;
  unsigned char* const aligned = dynamic + (base - start);
  const Shared shared = {base, reinterpret_cast<Piece*>(aligned + S::kPiecesAt),
                         reinterpret_cast<float2*>(aligned + S::kMergedAt), base + S::kBarriersAt};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kPieces; ++i) {
      init_barrier(QUIRE_BARRIER(piece_full, i), 1);
      init_barrier(QUIRE_BARRIER(piece_empty, i), kPieceReaders);
    }
    init_barrier(QUIRE_BARRIER(query_full, 0), kQueryThreads);
    init_barrier(QUIRE_BARRIER(query_empty, 0), kConsumerWarps);
    for (int i = 0; i < S::kStages; ++i) {
      init_barrier(QUIRE_BARRIER(keys_full, i), 1);
      init_barrier(QUIRE_BARRIER(keys_empty, i), kConsumerWarps);
      init_barrier(QUIRE_BARRIER(values_full, i), 1);
      init_barrier(QUIRE_BARRIER(values_empty, i), kConsumerWarps);
    }
    publish_barriers();
    prefetch_tensor_map(&key_map);
    prefetch_tensor_map(&value_map);
  }
  __syncthreads();
  wait_for_dependencies();
  const int32_t num_workers = __ldcg(&a.work.line->num_sms);
  if (static_cast<int32_t>(blockIdx.x) >= num_workers) return;
  launch_dependents();
  if (threadIdx.x < kGroupThreads) {
    shrink_registers<56>();
    if (threadIdx.x < 32) {
      produce_keys<kHeadDim>(a, &key_map, shared, num_workers);
    } else if (threadIdx.x < 64) {
      produce_values<kHeadDim>(a, &value_map, shared);
    } else {
      produce_query<T, kHeadDim>(a, shared);
    }
  } else {
    grow_registers<224>();
    consume<T, kHeadDim, kHasOptions>(a, shared);
  }
}

}  // namespace

template <class T, int kHeadDim>
void launch_prefill_wgmma(const KernelArgs& args, cudaStream_t stream) {
  using S = Shape<kHeadDim>;
  const int32_t box_tokens = args.p.block_size < kUnitKeys ? args.p.block_size : kUnitKeys;
  const CUtensorMap keys = encode_cache(args.p, args.p.key_cache, S::kChunk, box_tokens);
  const CUtensorMap values = encode_cache(args.p, args.p.value_cache, S::kChunk, box_tokens);
  LaunchConfig config;
  config.grid = dim3(args.work.num_workers);
  config.block = dim3(kThreads);
  config.shared_bytes = S::kSharedBytes;
  config.overlaps = true;
  config.stream = stream;
  const bool has_options = args.p.config.window > 0 || args.p.soft_cap > 0;
  ::quire::cuda::launch(
      "paged attention",
      has_options ? prefill_wgmma_kernel<T, kHeadDim, true> : prefill_wgmma_kernel<T, kHeadDim, false>,
      config, keys, values, args);
}

template void launch_prefill_wgmma<__nv_bfloat16, 64>(const KernelArgs&, cudaStream_t);
template void launch_prefill_wgmma<__nv_bfloat16, 96>(const KernelArgs&, cudaStream_t);
template void launch_prefill_wgmma<__nv_bfloat16, 128>(const KernelArgs&, cudaStream_t);
template void launch_prefill_wgmma<__half, 64>(const KernelArgs&, cudaStream_t);
template void launch_prefill_wgmma<__half, 96>(const KernelArgs&, cudaStream_t);
template void launch_prefill_wgmma<__half, 128>(const KernelArgs&, cudaStream_t);

}  // namespace quire::cuda::attention
