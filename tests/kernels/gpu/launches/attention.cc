// The plan and the layers of paged attention: decode, chunks of prompts and prompts behind a cached prefix in
// one batch, two layers over one plan.
#include <algorithm>
#include <limits>

#include "launches.h"
#include "quire/cuda/paged_attention.h"

namespace quire::launches {
namespace {

constexpr int32_t kQHeads = 8, kKVHeads = 2, kMaxBlocks = 24;

struct Request {
  int32_t query_len, seq_len;
};

using Batch = std::vector<Request>;
// What can meet: one token, no token, block borders, a prompt alone, one behind a prefix, long contexts.
const Batch kMixed{{1, 1}, {1, 16}, {0, 40}, {70, 70}, {1, 17}, {33, 300}, {1, 383}, {1, 250}};
const Batch kDecode{{1, 383}, {1, 129}, {1, 1}, {1, 64}, {1, 300}};

// What the bits of an e4m3 float mean; 0x7f and 0xff: NaN.
float from_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude =
      exponent ? std::ldexp(1 + mantissa / 8.0f, exponent - 7) : std::ldexp(mantissa / 8.0f, -6);
  return bits & 0x80 ? -magnitude : magnitude;
}

// Blocks of all requests, shuffled, behind a few that nobody owns; what no token of a request wrote is NaN.
class Cache {
 public:
  Cache(const Batch& batch, int32_t head_dim, int32_t block_size, bool is_float8)
      : head_dim_(head_dim),
        block_size_(block_size),
        is_float8_(is_float8),
        tables_(batch.size() * kMaxBlocks, -1) {
    int32_t num_blocks = 3;
    for (const Request& r : batch) num_blocks += (r.seq_len + block_size - 1) / block_size;
    std::vector<int32_t> order(num_blocks);
    for (int32_t i = 0; i < num_blocks; ++i) order[i] = i;
    std::mt19937 generator(7);
    std::shuffle(order.begin(), order.end(), generator);
    const size_t size = num_blocks * size_t(stride_block());
    bytes_.assign(size * element(), 0xff);
    values_offset_ = size_t(block_size) * kKVHeads * head_dim * element();
    const auto random = random_values(size, 1, 11);
    for (size_t i = 0, block = 0; i < batch.size(); ++i) {
      for (int32_t position = 0; position < batch[i].seq_len; ++position) {
        if (position % block_size == 0) tables_[i * kMaxBlocks + position / block_size] = order[block++];
        const size_t first = row(i, position, 0);
        for (size_t e = first; e < first + size_t(kKVHeads) * head_dim; ++e) {
          for (const size_t offset : {size_t{0}, values_offset_})
            write(offset + e * element(), random[offset / element() + e]);
        }
      }
    }
  }

  int32_t element() const { return is_float8_ ? 1 : 2; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  size_t values_offset() const { return values_offset_; }
  int64_t stride_block() const { return int64_t{2} * block_size_ * kKVHeads * head_dim_; }
  const std::vector<int32_t>& tables() const { return tables_; }
  double key(size_t request, int32_t position, int32_t head, int32_t d) const {
    return read((row(request, position, head) + d) * element());
  }
  double value(size_t request, int32_t position, int32_t head, int32_t d) const {
    return read(values_offset_ + (row(request, position, head) + d) * element());
  }

 private:
  size_t row(size_t request, int32_t position, int32_t head) const {
    const size_t block = tables_[request * kMaxBlocks + position / block_size_];
    return block * stride_block() + (position % block_size_ * kKVHeads + head) * head_dim_;
  }
  void write(size_t at, BFloat16 value) {
    if (is_float8_) {
      bytes_[at] = static_cast<uint8_t>((value & 0x80) | (0x30 + value % 16));  // +-0.5 to +-1.875
    } else {
      std::memcpy(&bytes_[at], &value, sizeof(value));
    }
  }
  double read(size_t at) const {
    if (is_float8_) return from_e4m3(bytes_[at]);
    BFloat16 value;
    std::memcpy(&value, &bytes_[at], sizeof(value));
    return to_float(value);
  }

  int32_t head_dim_, block_size_;
  bool is_float8_;
  std::vector<int32_t> tables_;  // [requests, kMaxBlocks]
  std::vector<uint8_t> bytes_;   // of each block keys, then values
  size_t values_offset_ = 0;     // in a block
};

std::vector<double> reference(const Batch& batch, const Cache& cache, const std::vector<BFloat16>& query,
                              int32_t head_dim, int32_t window) {
  std::vector<double> out(query.size());
  size_t token = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    for (int32_t j = 0; j < batch[i].query_len; ++j, ++token) {
      const int32_t end = batch[i].seq_len - batch[i].query_len + j + 1;
      const int32_t begin = window ? std::max(0, end - window) : 0;
      for (int32_t head = 0; head < kQHeads; ++head) {
        const size_t at = (token * kQHeads + head) * head_dim;
        const int32_t kv_head = head / (kQHeads / kKVHeads);
        double sum = 0;
        for (int32_t position = begin; position < end; ++position) {
          double score = 0;
          for (int32_t d = 0; d < head_dim; ++d)
            score += to_float(query[at + d]) * cache.key(i, position, kv_head, d);
          const double weight = std::exp(score / std::sqrt(head_dim));
          sum += weight;
          for (int32_t d = 0; d < head_dim; ++d) out[at + d] += weight * cache.value(i, position, kv_head, d);
        }
        for (int32_t d = 0; d < head_dim; ++d) out[at + d] /= sum;
      }
    }
  }
  return out;
}

void run(const Batch& batch, const std::string& name, int32_t head_dim, int32_t block_size,
         bool is_float8 = false, int32_t window = 0, int32_t split_keys = 0) {
  const Cache cache(batch, head_dim, block_size, is_float8);
  std::vector<int32_t> starts{0}, seq_lens, rows;
  int32_t max_query_len = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    starts.push_back(starts.back() + batch[i].query_len);
    seq_lens.push_back(batch[i].seq_len);
    rows.push_back(static_cast<int32_t>(i));
    max_query_len = std::max(max_query_len, batch[i].query_len);
  }
  const int32_t num_seqs = static_cast<int32_t>(batch.size()), num_tokens = starts.back();
  const auto host_query = random_values(size_t(num_tokens) * kQHeads * head_dim, 1, 5);

  PagedAttentionConfig config;
  config.num_q_heads = kQHeads;
  config.num_kv_heads = kKVHeads;
  config.head_dim = head_dim;
  config.max_num_seqs = num_seqs + 3;
  config.max_num_tokens = num_tokens + 5;
  config.max_seq_len = kMaxBlocks * block_size;
  config.split_keys = split_keys;
  config.window = window;
  require(cudaDeviceGetAttribute(&config.num_sms, cudaDevAttrMultiProcessorCount, 0));

  const Device<int32_t> num_reqs_here({num_seqs}), starts_here(starts), seq_lens_here(seq_lens),
      rows_here(rows);
  const Device<int32_t> tables(cache.tables());
  const Device<uint8_t> workspace(cuda::paged_attention_workspace_bytes(config), kPoisoned),
      keys_values(cache.bytes());
  const Device<BFloat16> query(host_query), out(host_query.size(), kPoisoned);

  PagedAttentionPlanParams plan;
  plan.config = config;
  plan.num_seqs = num_reqs_here.data();
  plan.query_start_loc = starts_here.data();
  plan.seq_lens = seq_lens_here.data();
  plan.block_table_rows = rows_here.data();
  plan.workspace = workspace.data();

  PagedAttentionParams p;
  p.config = config;
  p.block_size = block_size;
  p.softmax_scale = 1 / std::sqrt(static_cast<float>(head_dim));
  p.max_query_len = max_query_len;
  p.query = query.data();
  p.stride_query_token = kQHeads * head_dim;
  p.key_cache = keys_values.data();
  p.value_cache = keys_values.data() + cache.values_offset();
  p.stride_block = cache.stride_block();
  p.out = out.data();
  p.stride_out_token = kQHeads * head_dim;
  p.block_tables = tables.data();
  p.stride_block_table = kMaxBlocks;
  p.workspace = workspace.data();
  p.kv_dtype = is_float8 ? KVDType::kFloat8E4M3 : KVDType::kSame;

  cuda::launch_paged_attention_plan(plan, nullptr);
  for (const bool follows_layer : {false, true}) {
    p.follows_layer = follows_layer;
    cuda::launch_paged_attention(p, nullptr);
  }
  check_close(out.host(), reference(batch, cache, host_query, head_dim, window),
              "paged_attention " + name + " head_dim " + std::to_string(head_dim) + " block_size " +
                  std::to_string(block_size) + (is_float8 ? " float8" : "") + (window ? " window" : "") +
                  (split_keys ? " split_keys" : ""));
}

}  // namespace

void attention() {
  for (const int32_t head_dim : {64, 80, 96, 128, 256}) run(kMixed, "mixed", head_dim, 16);
  for (const int32_t head_dim : {64, 128}) {
    run(kDecode, "decode", head_dim, 16);
    run(kMixed, "mixed", head_dim, 32, true);
    run(kMixed, "mixed", head_dim, 16, false, 63);
    run(kMixed, "mixed", head_dim, 16, false, 0, 128);
  }
}

}  // namespace quire::launches
