// One row of logits as a cluster of blocks sees it: where it lies, and what becomes of each logit before it
// is sampled from.
//
// A row is cut into kNumSegments runs of consecutive ids, one per warp of the cluster. The cut depends on the
// vocabulary alone, and sums are taken per segment, so that a row gives the same numbers in every batch.
// Logits are read from global memory by every pass: the first one leaves a block's share in the L1 cache.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

#include "common/reduce.cuh"
#include "common/vec.cuh"

namespace quire::cuda::sampling {

namespace cg = cooperative_groups;

constexpr int kClusterSize = 8;
constexpr int kThreads = 256;
constexpr int kNumWarps = kThreads / kWarpSize;
constexpr int kNumSegments = kClusterSize * kNumWarps;
constexpr int kBatch = 4;  // vectors that a thread has in flight
constexpr int kMaxVocabSize = 1 << 19;
constexpr float kLargestFloat = 3.402823466e38f;
constexpr uint32_t kMinusInfKey = 0x007fffffu;
constexpr uint32_t kInfKey = 0xff800000u;  // and larger: NaN

__device__ inline float minus_inf() { return -__int_as_float(0x7f800000); }

// Larger keys are larger logits; -0 equals 0.
__device__ inline uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit == 0 ? 0.0f : logit);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ inline float logit_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// Larger values rank before: by logit, then by id. Never 0.
__device__ inline uint64_t rank_key(float logit, int id) {
  return (static_cast<uint64_t>(key_of(logit)) << 32) | ~static_cast<uint32_t>(id);
}

__device__ inline int32_t id_of(uint64_t rank_key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(rank_key));
}

// NaN when one of them is.
__device__ inline float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// An entry of token_counts: whether the token is in the prompt, and how often in the output.
constexpr int kInPrompt = 0x8000, kMaxCount = 0x7fff;

// The bias of an id that has one. A call: it is rare, and the loops that need it are unrolled.
__device__ __noinline__ inline float find_bias(const int32_t* ids, const float* biases, int count, int id) {
  int first = 0, last = count - 1;
  while (first < last) {
    const int middle = (first + last) / 2;
    if (ids[middle] < id) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return biases[first];
}

// What a row asks for beside its logits. The same as quire::cpu does, bit by bit: see sample.h.
struct Adjustments {
  const uint32_t* mask = nullptr;     // of this block's ids, in shared memory; set bits may not be sampled
  const uint32_t* biased = nullptr;   // the same: bits of the ids that have a bias
  const int32_t* bias_ids = nullptr;  // [num_biases], ascending, of the whole row
  const float* biases = nullptr;
  int num_biases = 0;
  const uint16_t* counts = nullptr;  // of this block's ids; null: no penalties
  float repetition = 1, presence = 0, frequency = 0;
  float floor = minus_inf();  // logits below are out: min_p

  __device__ bool is_masked(int i) const { return mask != nullptr && ((mask[i / 32] >> (i % 32)) & 1) != 0; }

  __device__ bool is_biased(int i) const {
    return biased != nullptr && ((biased[i / 32] >> (i % 32)) & 1) != 0;
  }

  // entry: of token_counts.
  __device__ float apply(float logit, int entry) const {
    if (entry != 0) {
      const int count = entry & kMaxCount;
      logit = logit > 0 ? __fdiv_rn(logit, repetition) : __fmul_rn(logit, repetition);
      logit = __fmaf_rn(-frequency, static_cast<float>(count), logit);
      if (count > 0) logit = __fsub_rn(logit, presence);
    }
    return logit < floor ? minus_inf() : logit;
  }
};

// Penalties alone, as a call too. entry: of token_counts, not 0.
__device__ __noinline__ inline float penalised(float logit, int entry, float repetition, float presence,
                                               float frequency) {
  Adjustments adjustments;
  adjustments.repetition = repetition;
  adjustments.presence = presence;
  adjustments.frequency = frequency;
  return adjustments.apply(logit, entry);
}

struct Segment {
  int first, end;  // in the slice
};

__host__ __device__ constexpr int segment_size(int vocab_size) {
  return ((vocab_size + kNumSegments - 1) / kNumSegments + 7) / 8 * 8;  // whole vectors
}

__host__ __device__ constexpr int slice_size(int vocab_size) { return segment_size(vocab_size) * kNumWarps; }

// One block's view of a row: a slice of kNumWarps segments.
//
// kAdjusted: it may have penalties, min_p and biases, not only a mask. Most calls have none, and these cost
// registers.
template <class T, bool kAdjusted = false>
struct RowView {
  static constexpr int kSize = kVecSize<T>;
  static constexpr int kStep = kWarpSize * kSize;  // ids from one vector of a thread to its next
  using Vector = Vec<T, kSize>;
  using Counts = Vec<uint16_t, kSize>;

  const T* logits;  // [size], global memory
  int32_t begin;    // id of logits[0]
  int32_t size;     // 0 for blocks past a short row's end
  int32_t segment_size;
  Adjustments adjustments;

  // The slice of the block with this rank in the cluster.
  __device__ RowView(const T* row, int vocab_size, int rank)
      : begin(rank * slice_size(vocab_size)),
        size(max(0, min(slice_size(vocab_size), vocab_size - begin))),
        segment_size(sampling::segment_size(vocab_size)) {
    logits = row + begin;
  }

  __device__ Segment segment(int warp) const {
    const int first = min(size, warp * segment_size);
    return {first, min(size, first + segment_size)};
  }

  __device__ Segment segment() const { return segment(threadIdx.x / kWarpSize); }

  __device__ bool has_counts() const { return kAdjusted && adjustments.counts != nullptr; }
  __device__ bool has_biases() const { return kAdjusted && adjustments.biased != nullptr; }

  __device__ float biased_logit(float logit, int i) const {
    if (!kAdjusted || !adjustments.is_biased(i)) return logit;
    return __fadd_rn(logit,
                     find_bias(adjustments.bias_ids, adjustments.biases, adjustments.num_biases, begin + i));
  }

  __device__ float logit(int i) const {
    if (adjustments.is_masked(i)) return minus_inf();
    return adjustments.apply(biased_logit(to_float(logits[i]), i), has_counts() ? adjustments.counts[i] : 0);
  }

  // Whether a segment consists of whole vectors.
  __device__ bool is_whole(const Segment& segment) const {
    return reinterpret_cast<uintptr_t>(logits) % 16 == 0 && segment.end % kSize == 0;
  }

  // Whether a segment takes the fast way. Both ways give the same numbers.
  __device__ bool is_plain(const Segment& segment) const {
    return is_whole(segment) && !has_counts() && !has_biases() && adjustments.floor == minus_inf();
  }

  // vecs[j] from logits[i + j * kStep] on, of a whole segment: all in flight at once. -inf past the end.
  template <int kVecs>
  __device__ void load_batch(int i, int end, Vector (&vecs)[kVecs]) const {
#pragma unroll
    for (int j = 0; j < kVecs; ++j) {
      if (i + j * kStep < end) {
        vecs[j] = load_vec<T, kSize>(logits + i + j * kStep);
      } else {
#pragma unroll
        for (int k = 0; k < kSize; ++k) vecs[j][k] = from_float<T>(minus_inf());
      }
    }
  }

  // The floats of a vector of a plain segment, from logits[i] on.
  __device__ void unpack(const Vector& vec, int i, int end, float (&values)[kSize]) const {
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = to_float(vec[k]);
    if (adjustments.mask == nullptr || i >= end) return;
    const uint32_t bits = adjustments.mask[i / 32] >> (i % 32);  // kSize divides 32
    if ((bits & ((1u << kSize) - 1)) == 0) return;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (((bits >> k) & 1) != 0) values[k] = minus_inf();
    }
  }

  // For any segment: the vector from logits[i] on, and its entries of token_counts.
  __device__ void load(int i, int end, Vector& vec, Counts& counts) const {
    if (i + kSize <= end && reinterpret_cast<uintptr_t>(logits) % 16 == 0) {
      vec = load_vec<T, kSize>(logits + i);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) vec[k] = i + k < end ? logits[i + k] : from_float<T>(minus_inf());
    }
    if (has_counts() && i + kSize <= end && reinterpret_cast<uintptr_t>(adjustments.counts) % 16 == 0) {
      counts = load_vec<uint16_t, kSize>(adjustments.counts + i);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        counts[k] = has_counts() && i + k < end ? adjustments.counts[i + k] : uint16_t{0};
      }
    }
  }

  // The floats of both, -inf past the end.
  __device__ void adjustment(const Vector& vec, const Counts& counts, int i, int end,
                             float (&values)[kSize]) const {
    if constexpr (kAdjusted) {
      unpack(vec, i, end, values);
      if (i < end) edit_touched(counts, i, values);
    } else {
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        const bool is_out = i + k >= end || adjustments.is_masked(i + k);
        values[k] =
            is_out ? minus_inf() : adjustments.apply(biased_logit(to_float(vec[k]), i + k), counts[k]);
      }
    }
  }

  // Biases, penalties and the floor. Most vectors have no logit with one of the first two.
  __device__ void edit_touched(const Counts& counts, int i, float (&values)[kSize]) const {
    static_assert(32 % kSize == 0, "the ids of a vector lie in one word");
    const auto bits_at = [&](const uint32_t* words) {
      return words == nullptr ? 0 : (words[i / 32] >> (i % 32)) & ((1u << kSize) - 1);
    };
    const uint32_t biased = bits_at(adjustments.biased);
    uint32_t any_count = 0;
#pragma unroll
    for (int k = 0; k < kSize; ++k) any_count |= counts[k];
    if ((biased | any_count) != 0) {
      const uint32_t masked = bits_at(adjustments.mask);
#pragma unroll
      for (int k = 0; k < kSize; ++k) {
        const bool is_biased = ((biased >> k) & 1) != 0;
        if ((!is_biased && counts[k] == 0) || ((masked >> k) & 1) != 0) continue;
        values[k] = biased_logit(values[k], i + k);
        if (counts[k] == 0) continue;
        values[k] = penalised(values[k], counts[k], adjustments.repetition, adjustments.presence,
                              adjustments.frequency);
      }
    }
#pragma unroll
    for (int k = 0; k < kSize; ++k) values[k] = values[k] < adjustments.floor ? minus_inf() : values[k];
  }

  // use(values, i) for the vectors of this thread in a segment that its warp looks at: values from logits[i]
  // on, -inf past the end. All threads of the warp call it equally often.
  template <bool kPlain, int kVecs = kBatch, class Use>
  __device__ void for_each_vector(const Segment& segment, Use use) const {
    const int lane = threadIdx.x % kWarpSize;
    constexpr int kInFlight = kPlain ? kVecs : 2;  // two kinds of vectors, and much more to do for each
    float values[kSize];
#pragma unroll 1
    for (int first = segment.first + lane * kSize; first - lane * kSize < segment.end;
         first += kInFlight * kStep) {
      Vector vecs[kInFlight];
      if constexpr (kPlain) {
        load_batch(first, segment.end, vecs);
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          unpack(vecs[j], first + j * kStep, segment.end, values);
          use(values, first + j * kStep);
        }
      } else {
        Counts counts[kInFlight];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) load(first + j * kStep, segment.end, vecs[j], counts[j]);
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
          adjustment(vecs[j], counts[j], first + j * kStep, segment.end, values);
          use(values, first + j * kStep);
        }
      }
    }
  }

  // For this warp's own segment, whichever way it takes.
  template <class Use>
  __device__ void for_each_vector(Use use) const {
    const Segment segment = this->segment();
    if (is_plain(segment)) {
      for_each_vector<true>(segment, use);
    } else {
      for_each_vector<false>(segment, use);
    }
  }
};

}  // namespace quire::cuda::sampling
