// The sampler, plain and with adjustments, logprobs and the counts of tokens.
#include "quire/cuda/sampling.h"

#include <algorithm>

#include "launches.h"

namespace quire::launches {
namespace {

constexpr int32_t kRows = 4;

struct Setting {
  const char* name;
  float temperature, top_p, min_p;
  int32_t top_k;
};

// What each row says is the likeliest; equal logits: the lower id.
std::vector<int32_t> likeliest(const std::vector<BFloat16>& logits, int32_t vocab_size) {
  std::vector<int32_t> ids;
  for (int32_t row = 0; row < kRows; ++row) {
    const BFloat16* first = &logits[size_t(row) * vocab_size];
    const auto is_less = [](BFloat16 a, BFloat16 b) { return to_float(a) < to_float(b); };
    ids.push_back(static_cast<int32_t>(std::max_element(first, first + vocab_size, is_less) - first));
  }
  return ids;
}

void sample(int32_t vocab_size, float scale, const Setting& setting) {
  const auto host_logits = random_values(size_t(kRows) * vocab_size, scale);
  const Device<BFloat16> logits(host_logits);
  const Device<float> temperature(std::vector<float>(kRows, setting.temperature));
  const Device<float> top_p(std::vector<float>(kRows, setting.top_p)),
      min_p(std::vector<float>(kRows, setting.min_p));
  const Device<int32_t> top_k(std::vector<int32_t>(kRows, setting.top_k)), output_idx({0, 1, 2, 3});
  const Device<uint64_t> seed({1, 2, 3, 4});
  // Masks of two rows: all but the last id, which is none of the likeliest, and all ids.
  const int32_t words = (vocab_size + 31) / 32;
  std::vector<uint32_t> masks(size_t(kRows + 1) * words, ~0u);
  masks[words - 1] &= ~(1u << (vocab_size - 1) % 32);
  const Device<uint32_t> token_masks(masks);
  const Device<int32_t> out(kRows, kPoisoned), mask_rows({0, -1, -1, 1});
  const Device<int32_t> sample_rows({0, 2, 1, kRows}), last_token_ids(kRows + 1, kPoisoned);

  SampleParams p;
  p.num_rows = kRows;
  p.vocab_size = vocab_size;
  p.logits = logits.data();
  p.stride_logits = vocab_size;
  p.temperature = temperature.data();
  p.top_k = top_k.data();
  p.top_p = top_p.data();
  p.seed = seed.data();
  p.output_idx = output_idx.data();
  p.mask_rows = mask_rows.data();
  p.token_masks = token_masks.data();
  p.out = out.data();
  p.sample_rows = sample_rows.data();
  p.last_token_ids = last_token_ids.data();
  cuda::launch_sample(p, nullptr);
  const auto plain = out.host();
  const auto are_ids = [&](const std::vector<int32_t>& ids) {
    return std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return 0 <= id && id < vocab_size; });
  };
  const bool is_greedy = setting.temperature == 0 || setting.top_k == 1;
  const std::string name = std::string(setting.name) + " of " + std::to_string(vocab_size);
  check(is_greedy ? plain == likeliest(host_logits, vocab_size) : are_ids(plain), "sample " + name);

  // Every adjustment is there and none changes anything: biases and penalties are none.
  const Device<float> ones(std::vector<float>(kRows, 1)), zeros(std::vector<float>(kRows, 0));
  const Device<float> presence({0, 0, 1e-30f, 0}), biases({0, 0});
  const Device<uint16_t> counts(std::vector<uint16_t>(size_t(kRows + 1) * vocab_size, 0));
  const Device<int32_t> bias_offsets({0, 2, 2, 2, 2}), bias_ids({0, vocab_size / 2});
  p.min_p = min_p.data();
  p.repetition_penalty = ones.data();
  p.presence_penalty = presence.data();
  p.frequency_penalty = zeros.data();
  p.token_counts = counts.data();
  p.bias_offsets = bias_offsets.data();
  p.bias_ids = bias_ids.data();
  p.biases = biases.data();
  out.poison();
  cuda::launch_sample(p, nullptr);
  const auto adjusted = out.host();
  check(setting.min_p > 0 ? are_ids(adjusted) : adjusted == plain, "sample with adjustments " + name);
}

void logprobs(int32_t vocab_size) {
  const auto host_logits = random_values(size_t(kRows) * vocab_size, 2);
  const auto ids = likeliest(host_logits, vocab_size);
  const Device<BFloat16> logits(host_logits);
  const Device<int32_t> token_ids(ids), num_logprobs({1, 0, 5, 20}), ranks(kRows, kPoisoned),
      top_ids(kRows * kMaxLogprobs, kPoisoned);
  const Device<float> token_logprobs(kRows, kPoisoned), top_logprobs(kRows * kMaxLogprobs, kPoisoned);
  LogprobsParams p;
  p.num_rows = kRows;
  p.vocab_size = vocab_size;
  p.logits = logits.data();
  p.stride_logits = vocab_size;
  p.token_ids = token_ids.data();
  p.num_logprobs = num_logprobs.data();
  p.token_logprobs = token_logprobs.data();
  p.token_ranks = ranks.data();
  p.top_ids = top_ids.data();
  p.top_logprobs = top_logprobs.data();
  cuda::launch_logprobs(p, nullptr);
  check(ranks.host() == std::vector<int32_t>({1, -1, 1, 1}),
        "logprobs of " + std::to_string(vocab_size) + ": ranks");
  const auto got = token_logprobs.host();
  for (const int32_t row : {0, 2, 3}) {
    double sum = 0;
    const BFloat16* first = &host_logits[size_t(row) * vocab_size];
    for (int32_t i = 0; i < vocab_size; ++i)
      sum += std::exp(double{to_float(first[i])} - to_float(first[ids[row]]));
    check(std::abs(got[row] + std::log(sum)) < 1e-4, "logprobs: of the likeliest");
    check(top_ids.host()[row * kMaxLogprobs] == ids[row], "logprobs: it is the first of the likeliest");
  }
}

void token_counts() {
  constexpr int32_t kVocab = 100;
  const Device<int32_t> rows({2, 0}), offsets({0, 4, 6}), prompt_lens({2, 2}), ids({5, 6, 6, 99, 1, kVocab});
  const Device<uint16_t> counts(3 * kVocab, kPoisoned);
  TokenCountsParams p;
  p.num_seqs = 2;
  p.vocab_size = kVocab;
  p.rows = rows.data();
  p.token_offsets = offsets.data();
  p.prompt_lens = prompt_lens.data();
  p.token_ids = ids.data();
  p.token_counts = counts.data();
  cuda::launch_token_counts(p, nullptr);
  std::vector<uint16_t> wanted(3 * kVocab, 0);
  std::fill_n(&wanted[kVocab], kVocab, 0xffff);  // a row of nobody
  wanted[1] = wanted[2 * kVocab + 5] = 0x8000;
  wanted[2 * kVocab + 6] = 0x8001;
  wanted[2 * kVocab + 99] = 1;
  check(counts.host() == wanted, "token_counts");
}

}  // namespace

void sampling() {
  const Setting settings[] = {{"greedy", 0, 1, 0, 0},    {"the likeliest", 1, 1, 0, 1},
                              {"top_k", 1, 1, 0, 50},    {"top_k and top_p", 0.8f, 0.9f, 0, 50},
                              {"top_p", 1, 0.95f, 0, 0}, {"all", 1, 1, 0, 0},
                              {"min_p", 1, 1, 0.05f, 0}};
  for (const Setting& setting : settings) {
    for (const int32_t vocab_size : {1000, 9001}) sample(vocab_size, 2, setting);
    sample(5000, 0.01f, setting);  // many candidates alike
  }
  for (const int32_t vocab_size : {1000, 9001}) logprobs(vocab_size);
  token_counts();
}

}  // namespace quire::launches
