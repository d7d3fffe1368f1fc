// Sampling without sorting the vocabulary.
//
// top_k: the k-th largest of the maxima of blocks of 64 logits bounds the k-th largest logit from below, so
// only logits above that bound are gathered and sorted. top_p: the same with a guessed k; where the guess
// does not reach top_p, a histogram of probability over logits finds the bin where the prefix ends, and only
// that bin is sorted.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "quire/cpu/sampling.h"
#include "thread_pool.h"

namespace quire::cpu {
namespace {

constexpr int64_t kFirstGuess = 128;  // tokens that usually hold top_p of the probability
constexpr int64_t kNumBins = 2048;

enum RowError : int32_t { kNan = -1, kInfinite = -2, kNothingLeft = -3 };

struct Candidate {
  float logit;
  int32_t id;
};

bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Memory of one thread, grown once to the vocabulary.
struct Scratch {
  std::vector<float> logits, weights, block_values, block_order;
  std::vector<Candidate> candidates;
  std::vector<double> bin_mass;
};

// In [0, 1), with 53 random bits.
double uniform(uint64_t seed, int32_t output_idx) {
  const std::array<uint32_t, 4> words = philox4x32(seed, static_cast<uint32_t>(output_idx));
  return ((words[0] >> 5) * 67108864.0 + (words[1] >> 6)) / 9007199254740992.0;
}

class RowSampler {
 public:
  // logits [size] float32 with masked ids at -inf; max is finite.
  RowSampler(const KernelTable& table, Scratch& scratch, const float* logits, int64_t size, float max,
             float temperature)
      : table_(table),
        s_(scratch),
        logits_(logits),
        size_(size),
        max_(max),
        // Finite even for a denormal temperature, so that the largest logit's 0 stays 0.
        inverse_temperature_(std::min(1.0f / temperature, std::numeric_limits<float>::max())) {}

  int32_t draw(int64_t top_k, float top_p, double u) {
    if (top_k <= 0 || top_k >= size_) top_k = 0;
    if (top_k == 0 && top_p >= 1) return draw_from_all(u);
    if (top_k != 0) {
      gather_largest(top_k);
      weigh_candidates();
      if (top_p < 1) keep_mass(top_p * total(), 0);
    } else {
      gather_nucleus(top_p);
    }
    return draw_from_candidates(u);
  }

 private:
  int64_t num_blocks() const { return (size_ + kLogitsBlock - 1) / kLogitsBlock; }

  int32_t draw_from_all(double u) {
    s_.weights.resize(size_);
    s_.block_values.resize(num_blocks());
    table_.softmax_weights(logits_, size_, max_, inverse_temperature_, s_.weights.data(),
                           s_.block_values.data());
    double total = 0;
    for (const float sum : s_.block_values) total += sum;
    double rest = u * total;
    for (int64_t block = 0; block < num_blocks(); ++block) {
      if (rest >= s_.block_values[block]) {
        rest -= s_.block_values[block];
        continue;
      }
      const int64_t end = std::min(size_, (block + 1) * kLogitsBlock);
      int64_t last = -1;  // rounding may leave a little over at the end of the block
      for (int64_t i = block * kLogitsBlock; i < end; ++i) {
        if (s_.weights[i] > 0) last = i;
        if (rest < s_.weights[i]) return static_cast<int32_t>(i);
        rest -= s_.weights[i];
      }
      return static_cast<int32_t>(last);
    }
    for (int64_t i = size_ - 1;; --i) {  // the same at the end of the row; the largest logit weighs 1
      if (s_.weights[i] > 0) return static_cast<int32_t>(i);
    }
  }

  // candidates = the `count` first tokens in rank order (fewer when other logits are -inf), sorted.
  void gather_largest(int64_t count) {
    constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
    s_.block_values.resize(num_blocks());
    table_.block_max(logits_, size_, s_.block_values.data());
    float bound = kMinusInf;
    if (count <= num_blocks()) {
      s_.block_order = s_.block_values;
      std::nth_element(s_.block_order.begin(), s_.block_order.begin() + (count - 1), s_.block_order.end(),
                       std::greater<>());
      bound = s_.block_order[count - 1];
    }
    s_.candidates.clear();
    for (int64_t block = 0; block < num_blocks(); ++block) {
      if (s_.block_values[block] < bound) continue;
      const int64_t end = std::min(size_, (block + 1) * kLogitsBlock);
      for (int64_t i = block * kLogitsBlock; i < end; ++i) {
        if (logits_[i] >= bound && logits_[i] > kMinusInf) {
          s_.candidates.push_back({logits_[i], static_cast<int32_t>(i)});
        }
      }
    }
    if (static_cast<int64_t>(s_.candidates.size()) > count) {
      std::nth_element(s_.candidates.begin(), s_.candidates.begin() + (count - 1), s_.candidates.end(),
                       ranks_before);
      s_.candidates.resize(count);
    }
    std::sort(s_.candidates.begin(), s_.candidates.end(), ranks_before);
  }

  // weights[i] of candidates[i].
  void weigh_candidates() {
    s_.weights.resize(s_.candidates.size());
    for (size_t i = 0; i < s_.candidates.size(); ++i) s_.weights[i] = s_.candidates[i].logit;
    table_.softmax_weights(s_.weights.data(), static_cast<int64_t>(s_.weights.size()), max_,
                           inverse_temperature_, s_.weights.data(), nullptr);
  }

  double total() const {
    double sum = 0;
    for (const float weight : s_.weights) sum += weight;
    return sum;
  }

  // Cuts the candidates behind the first one at which the running mass, from first on, reaches `mass`. False
  // when it never does.
  bool keep_mass(double mass, size_t first) {
    double sum = 0;
    for (size_t i = first; i < s_.weights.size(); ++i) {
      sum += s_.weights[i];
      if (sum >= mass) {
        s_.candidates.resize(i + 1);
        s_.weights.resize(i + 1);
        return true;
      }
    }
    return false;
  }

  void gather_nucleus(float top_p) {
    s_.weights.resize(size_);
    s_.block_values.resize(num_blocks());
    table_.softmax_weights(logits_, size_, max_, inverse_temperature_, s_.weights.data(),
                           s_.block_values.data());
    double sum = 0;
    for (const float block_sum : s_.block_values) sum += block_sum;
    const double mass = top_p * sum;

    gather_largest(std::min(size_, kFirstGuess));
    weigh_candidates();
    if (keep_mass(mass, 0) || size_ <= kFirstGuess) return;

    // Bin b holds the logits that are b to b + 1 widths below the maximum; exp(-104) is 0 in float32.
    const float width = 104.0f / inverse_temperature_ / kNumBins;
    const auto bin_of = [&](float logit) {
      return static_cast<int64_t>(std::min((max_ - logit) / width, static_cast<float>(kNumBins - 1)));
    };
    s_.weights.resize(size_);
    table_.softmax_weights(logits_, size_, max_, inverse_temperature_, s_.weights.data(), nullptr);
    s_.bin_mass.assign(kNumBins, 0);
    for (int64_t i = 0; i < size_; ++i) s_.bin_mass[bin_of(logits_[i])] += s_.weights[i];
    int64_t last_bin = 0;
    double before = 0;
    while (last_bin + 1 < kNumBins && before + s_.bin_mass[last_bin] < mass)
      before += s_.bin_mass[last_bin++];

    // Every token before the last bin stays, in any fixed order; the last bin is ranked.
    s_.candidates.clear();
    for (int64_t i = 0; i < size_; ++i) {
      if (bin_of(logits_[i]) < last_bin) s_.candidates.push_back({logits_[i], static_cast<int32_t>(i)});
    }
    const size_t num_before = s_.candidates.size();
    for (int64_t i = 0; i < size_; ++i) {
      if (bin_of(logits_[i]) == last_bin && s_.weights[i] > 0) {
        s_.candidates.push_back({logits_[i], static_cast<int32_t>(i)});
      }
    }
    std::sort(s_.candidates.begin() + static_cast<std::ptrdiff_t>(num_before), s_.candidates.end(),
              ranks_before);
    weigh_candidates();
    keep_mass(mass - before, num_before);
  }

  int32_t draw_from_candidates(double u) const {
    double rest = u * total();
    size_t last = 0;
    for (size_t i = 0; i < s_.weights.size(); ++i) {
      if (rest < s_.weights[i]) return s_.candidates[i].id;
      rest -= s_.weights[i];
      if (s_.weights[i] > 0) last = i;
    }
    return s_.candidates[last].id;
  }

  const KernelTable& table_;
  Scratch& s_;
  const float* logits_;
  int64_t size_;
  float max_, inverse_temperature_;
};

constexpr int kMaxCount = 0x7fff;  // of an entry of token_counts
constexpr float kInf = std::numeric_limits<float>::infinity();

bool has_penalties(const SampleParams& p, int64_t row) {
  return p.token_counts != nullptr &&
         (p.repetition_penalty[row] != 1 || p.presence_penalty[row] != 0 || p.frequency_penalty[row] != 0);
}

uint16_t* counts_of(const SampleParams& p, int64_t row) {
  return p.token_counts + static_cast<int64_t>(p.sample_rows[row]) * p.vocab_size;
}

void apply_penalties(const SampleParams& p, int64_t row, float* logits) {
  const float repetition = p.repetition_penalty[row], presence = p.presence_penalty[row];
  const float frequency = p.frequency_penalty[row];
  const uint16_t* counts = counts_of(p, row);
  for (int32_t id = 0; id < p.vocab_size; ++id) {
    if (counts[id] == 0) continue;
    const int count = counts[id] & kMaxCount;
    float x = logits[id] > 0 ? logits[id] / repetition : logits[id] * repetition;
    x = std::fma(-frequency, static_cast<float>(count), x);
    logits[id] = count > 0 ? x - presence : x;
  }
}

bool has_biases(const SampleParams& p, int64_t row) {
  return p.bias_offsets != nullptr && p.bias_offsets[row] != p.bias_offsets[row + 1];
}

bool has_mask(const SampleParams& p, int64_t row) { return p.mask_rows != nullptr && p.mask_rows[row] >= 0; }

void apply_mask(const SampleParams& p, int64_t row, float* logits) {
  const int64_t num_words = (p.vocab_size + 31) / 32;
  const uint32_t* mask = p.token_masks + p.mask_rows[row] * num_words;
  for (int32_t id = 0; id < p.vocab_size; ++id) {
    if (((mask[id / 32] >> (id % 32)) & 1) == 0) logits[id] = -kInf;
  }
}

void apply_biases(const SampleParams& p, int64_t row, float* logits) {
  for (int32_t i = p.bias_offsets[row]; i < p.bias_offsets[row + 1]; ++i) {
    const int32_t id = p.bias_ids[i];
    if (id >= 0 && id < p.vocab_size) logits[id] += p.biases[i];
  }
}

int32_t choose(const SampleParams& p, const KernelTable& table, int64_t row) {
  thread_local Scratch scratch;
  int dtype = static_cast<int>(p.dtype);
  const void* logits = static_cast<const char*>(p.logits) + row * p.stride_logits * size_of(p.dtype);
  const bool is_greedy = p.temperature[row] == 0;
  const float min_p = p.min_p != nullptr && !is_greedy ? p.min_p[row] : 0;
  if (has_mask(p, row) || has_biases(p, row) || has_penalties(p, row) || min_p > 0 ||
      (!is_greedy && p.dtype != DType::kFloat32)) {
    scratch.logits.resize(p.vocab_size);
    table.to_float[dtype](logits, p.vocab_size, scratch.logits.data());
    if (has_mask(p, row)) apply_mask(p, row, scratch.logits.data());
    if (has_biases(p, row)) apply_biases(p, row, scratch.logits.data());
    if (has_penalties(p, row)) apply_penalties(p, row, scratch.logits.data());
    logits = scratch.logits.data();
    dtype = static_cast<int>(DType::kFloat32);
  }

  const LogitsSummary summary = table.summarize[dtype](logits, p.vocab_size);
  if (summary.has_nan) return kNan;
  if (summary.max == kInf) return kInfinite;
  if (summary.max == -kInf) return kNothingLeft;
  if (is_greedy) return static_cast<int32_t>(table.find_first[dtype](logits, p.vocab_size, summary.max));
  if (min_p > 0) {
    const float floor = min_p < 1 ? static_cast<float>(summary.max + static_cast<double>(p.temperature[row]) *
                                                                         std::log(static_cast<double>(min_p)))
                                  : summary.max;
    for (float& logit : scratch.logits) logit = logit < floor ? -kInf : logit;
  }
  RowSampler sampler(table, scratch, static_cast<const float*>(logits), p.vocab_size, summary.max,
                     p.temperature[row]);
  return sampler.draw(p.top_k[row], p.top_p[row], uniform(p.seed[row], p.output_idx[row]));
}

int32_t sample_row(const SampleParams& p, const KernelTable& table, int64_t row) {
  const int32_t id = choose(p, table, row);
  if (p.last_token_ids != nullptr) p.last_token_ids[p.sample_rows[row]] = std::max(id, 0);
  if (id >= 0 && has_penalties(p, row)) {
    uint16_t& entry = counts_of(p, row)[id];
    if ((entry & kMaxCount) != kMaxCount) ++entry;
  }
  return id;
}

}  // namespace

std::array<uint32_t, 4> philox4x32(uint64_t seed, uint64_t counter) {
  std::array<uint32_t, 4> c{static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

void sample(const SampleParams& p) {
  check_positive("vocab_size", p.vocab_size);
  table_index(p.dtype);  // refuses a type that has no kernels
  for (int32_t row = 0; row < p.num_rows; ++row) {
    if (!(p.temperature[row] >= 0)) {
      throw InvalidArgument("temperature[" + std::to_string(row) + "]", std::to_string(p.temperature[row]),
                            "0 or more");
    }
  }
  const KernelTable& table = kernels();
  const int64_t work = static_cast<int64_t>(p.num_rows) * p.vocab_size;
  parallel_for(work >= 1 << 17, p.num_rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) p.out[row] = sample_row(p, table, row);
  });

  int32_t bad_row = -1, error = 0;
  for (int32_t row = p.num_rows - 1; row >= 0; --row) {
    if (p.out[row] >= 0) continue;
    bad_row = row;
    error = p.out[row];
    p.out[row] = -1;
  }
  if (bad_row < 0) return;
  const char* given = error == kNan        ? "NaN"
                      : error == kInfinite ? "inf"
                                           : "-inf for every token that is not masked";
  throw InvalidArgument("logits[" + std::to_string(bad_row) + "]", given, "finite numbers and -inf");
}

}  // namespace quire::cpu
