// Codec of wire.h. Payloads, in order of the fields:
//   kRequests    u32 additions, each: u64 id, i32[] prompt, i32 priority, i64 arrival_ns, tokenize_ns,
//                deadline_ns, u8 return_receipt, SamplingParams; then u64[] cancellations
//   kReady       string model, i32 max_model_len, vocab_size, block_size, num_blocks, max_num_seqs,
//                max_num_batched_tokens, SamplingParams defaults, string token_table, vocabulary, loaded
//   kStartError  the message, to the end of the payload
//   kStep        EngineStats in the order of its fields, i32[] token_ids, Receipt[], u32 releases, each:
//                u64 request_id, u32 index, ids_begin, num_ids, num_text_ids, i32 trim, u8 is_first,
//                u32 open_text, u8 finish_reason, u32 num_prompt_tokens, num_cached_tokens, i32 receipt_idx,
//                string error,
//                when finish_reason is kStop: i32 stop_token_id, string stop_string; then
//                u32 ReleaseLogprobs, each: u32 release_idx, begin, num_per_id, num_prompt_places,
//                num_per_prompt_place, f64 cumulative_logprob; then Logprob[], each: i32 token_id, f32
//                logprob, i32 rank
// SamplingParams: i32 max_tokens, min_tokens, f32 temperature, top_p, i32 top_k, i64 seed, u8 RequestBits,
// string[] stop, i32[] stop_token_ids, i32 n, f32 min_p, presence_penalty, frequency_penalty,
// repetition_penalty, (i32 token_id, f32 bias)[] logit_bias, i32[] allowed_token_ids, i32[][] bad_word_ids,
// i32 logprobs, prompt_logprobs, stream_interval, string cache_salt.
// A string and an array are a u32 count and that many elements.
#include "quire/wire.h"

#include <bit>
#include <cstring>
#include <type_traits>

#include "quire/error.h"
#include "wire_bytes.h"
#include "wire_logprobs.h"

namespace quire::wire {

static_assert(std::endian::native == std::endian::little, "the wire is little endian and written by memcpy");
static_assert(sizeof(LogitBias) == 8 && std::is_trivially_copyable_v<LogitBias>, "an array of them too");

namespace {

enum RequestBits : uint8_t {
  kHasSeed = 1,
  kIgnoreEos = 2,
  kSkipSpecialTokens = 4,
  kIncludeStopStr = 8,
  kDetokenize = 16,
  kAllRequestBits = 31,
};

// Writes the header on construction, and its payload size when the payload is complete. Destroyed before
// that, it takes back what was written.
class FrameWriter {
 public:
  FrameWriter(std::string& out, FrameType type) : out_(out), start_(out.size()) {
    put(out_, kMagic);
    put(out_, kVersion);
    put(out_, static_cast<uint16_t>(type));
    put(out_, uint32_t{0});
  }
  ~FrameWriter() {
    if (!is_finished_) out_.resize(start_);
  }
  FrameWriter(const FrameWriter&) = delete;
  FrameWriter& operator=(const FrameWriter&) = delete;

  size_t payload_size() const { return out_.size() - start_ - kHeaderSize; }

  void finish() {
    const size_t size = payload_size();
    if (size > kMaxPayload) {
      throw Error("wire: a payload of " + std::to_string(size) + " bytes is over the limit of " +
                  std::to_string(kMaxPayload));
    }
    const auto payload_size = static_cast<uint32_t>(size);
    std::memcpy(out_.data() + start_ + kHeaderSize - sizeof(payload_size), &payload_size,
                sizeof(payload_size));
    is_finished_ = true;
  }

 private:
  std::string& out_;
  size_t start_;
  bool is_finished_ = false;
};

void put_params(std::string& out, const SamplingParams& params) {
  put(out, params.max_tokens);
  put(out, params.min_tokens);
  put(out, params.temperature);
  put(out, params.top_p);
  put(out, params.top_k);
  put(out, params.seed);
  put(out, static_cast<uint8_t>((params.has_seed ? kHasSeed : 0) | (params.ignore_eos ? kIgnoreEos : 0) |
                                (params.skip_special_tokens ? kSkipSpecialTokens : 0) |
                                (params.include_stop_str_in_output ? kIncludeStopStr : 0) |
                                (params.detokenize ? kDetokenize : 0)));
  put(out, static_cast<uint32_t>(params.stop.size()));
  for (const std::string& stop : params.stop) put_string(out, stop);
  put_array(out, params.stop_token_ids);
  put(out, params.n);
  put(out, params.min_p);
  put(out, params.presence_penalty);
  put(out, params.frequency_penalty);
  put(out, params.repetition_penalty);
  put_array(out, params.logit_bias);
  put_array(out, params.allowed_token_ids);
  put(out, static_cast<uint32_t>(params.bad_word_ids.size()));
  for (const std::vector<int32_t>& ids : params.bad_word_ids) put_array(out, ids);
  put(out, params.logprobs);
  put(out, params.prompt_logprobs);
  put(out, params.stream_interval);
  put_string(out, params.cache_salt);
}

void put_request(std::string& out, const NewRequest& request) {
  put(out, request.request_id);
  put_array(out, request.prompt_ids);
  put(out, request.priority);
  put(out, request.arrival_ns);
  put(out, request.tokenize_ns);
  put(out, request.deadline_ns);
  put(out, static_cast<uint8_t>(request.return_receipt));
  put_params(out, request.params);
}

void get_params(Reader& reader, SamplingParams& params) {
  params.max_tokens = reader.get<int32_t>();
  params.min_tokens = reader.get<int32_t>();
  params.temperature = reader.get<float>();
  params.top_p = reader.get<float>();
  params.top_k = reader.get<int32_t>();
  params.seed = reader.get<int64_t>();
  const auto bits = reader.get<uint8_t>();
  if ((bits & ~kAllRequestBits) != 0) throw Error("wire: unknown request bits " + std::to_string(bits));
  params.has_seed = (bits & kHasSeed) != 0;
  params.ignore_eos = (bits & kIgnoreEos) != 0;
  params.skip_special_tokens = (bits & kSkipSpecialTokens) != 0;
  params.include_stop_str_in_output = (bits & kIncludeStopStr) != 0;
  params.detokenize = (bits & kDetokenize) != 0;
  params.stop.resize(reader.get_count(sizeof(uint32_t)));
  for (std::string& stop : params.stop) stop = reader.get_string();
  reader.get_array(params.stop_token_ids);
  params.n = reader.get<int32_t>();
  params.min_p = reader.get<float>();
  params.presence_penalty = reader.get<float>();
  params.frequency_penalty = reader.get<float>();
  params.repetition_penalty = reader.get<float>();
  reader.get_array(params.logit_bias);
  reader.get_array(params.allowed_token_ids);
  params.bad_word_ids.resize(reader.get_count(sizeof(uint32_t)));
  for (std::vector<int32_t>& ids : params.bad_word_ids) reader.get_array(ids);
  params.logprobs = reader.get<int32_t>();
  params.prompt_logprobs = reader.get<int32_t>();
  params.stream_interval = reader.get<int32_t>();
  params.cache_salt = reader.get_string();
}

void get_request(Reader& reader, NewRequest& request) {
  request.request_id = reader.get<uint64_t>();
  reader.get_array(request.prompt_ids);
  request.priority = reader.get<int32_t>();
  request.arrival_ns = reader.get<int64_t>();
  request.tokenize_ns = reader.get<int64_t>();
  request.deadline_ns = reader.get<int64_t>();
  request.return_receipt = reader.get<uint8_t>() != 0;
  get_params(reader, request.params);
}

void get_release(Reader& reader, StepOutputs& frame, Release& release) {
  const size_t num_token_ids = frame.token_ids.size();
  release.request_id = reader.get<uint64_t>();
  release.index = reader.get<uint32_t>();
  release.ids_begin = reader.get<uint32_t>();
  release.num_ids = reader.get<uint32_t>();
  release.num_text_ids = reader.get<uint32_t>();
  release.trim = reader.get<int32_t>();
  release.is_first = reader.get<uint8_t>() != 0;
  release.open_text = OpenText(reader.get<uint32_t>());
  const auto reason = reader.get<uint8_t>();
  release.num_prompt_tokens = reader.get<uint32_t>();
  release.num_cached_tokens = reader.get<uint32_t>();
  release.receipt_idx = reader.get<int32_t>();
  release.error = reader.get_string();

  if (uint64_t{release.ids_begin} + release.num_ids > num_token_ids ||
      release.num_text_ids > release.num_ids) {
    throw Error("wire: a release names ids [" + std::to_string(release.ids_begin) + ", +" +
                std::to_string(release.num_ids) + "), " + std::to_string(release.num_text_ids) +
                " with text, of " + std::to_string(num_token_ids));
  }
  if (release.trim < 0) throw Error("wire: a release trims " + std::to_string(release.trim) + " bytes");
  if (reason > static_cast<uint8_t>(kLastFinishReason)) {
    throw Error("wire: unknown finish reason " + std::to_string(reason));
  }
  release.finish_reason = static_cast<FinishReason>(reason);
  release.stop_token_id = -1;
  release.stop_string_idx = -1;
  release.logprobs_idx = -1;
  if (release.finish_reason != FinishReason::kStop) return;
  release.stop_token_id = reader.get<int32_t>();
  const std::string_view stop_string = reader.get_string();
  if (stop_string.empty()) return;
  release.stop_string_idx = static_cast<int32_t>(frame.stop_strings.size());
  frame.stop_strings.emplace_back(stop_string);
}

// Bytes of the smallest encoded addition and release: what a count must be backed by.
constexpr size_t kMinParamsSize = 5 * 4 + 8 + 1 + 2 * 4 + 5 * 4 + 3 * 4 + 3 * 4 + 4;
constexpr size_t kMinRequestSize = 8 + 4 + 4 + 3 * 8 + 1 + kMinParamsSize;
constexpr size_t kMinReleaseSize = 8 + 4 * 4 + 4 + 2 + 4 * 4 + 4;

}  // namespace

FrameHeader parse_header(std::span<const char, kHeaderSize> bytes) {
  Reader reader(std::string_view(bytes.data(), bytes.size()));
  FrameHeader header;
  header.magic = reader.get<uint32_t>();
  header.version = reader.get<uint16_t>();
  const auto type = reader.get<uint16_t>();
  header.payload_size = reader.get<uint32_t>();
  if (header.magic != kMagic) {
    throw Error("wire: not a Quire frame: magic " + std::to_string(header.magic) +
                ", spoken here: " + std::to_string(kMagic) + " (\"QUIR\")");
  }
  if (header.version != kVersion) {
    throw Error("wire: the other side speaks version " + std::to_string(header.version) +
                ", this side version " + std::to_string(kVersion) + "; both must come from one build");
  }
  if (type < static_cast<uint16_t>(FrameType::kRequests) || type > static_cast<uint16_t>(FrameType::kStep)) {
    throw Error("wire: unknown frame type " + std::to_string(type) + "; known: 1 to 4 (version " +
                std::to_string(kVersion) + ")");
  }
  header.type = static_cast<FrameType>(type);
  if (header.payload_size > kMaxPayload) {
    throw Error("wire: a payload of " + std::to_string(header.payload_size) + " bytes is over the limit of " +
                std::to_string(kMaxPayload));
  }
  return header;
}

void encode(const RequestsFrame& frame, std::string& out, size_t max_payload) {
  const size_t start = out.size();
  size_t next = 0;
  try {
    do {
      FrameWriter writer(out, FrameType::kRequests);
      const size_t count_at = out.size();
      uint32_t count = 0;
      put(out, count);
      for (; next < frame.additions.size(); ++next, ++count) {
        const size_t end = out.size();
        put_request(out, frame.additions[next]);
        if (count == 0 || writer.payload_size() <= max_payload) continue;
        out.resize(end);  // it begins the next frame
        break;
      }
      std::memcpy(out.data() + count_at, &count, sizeof(count));
      const bool is_last = next == frame.additions.size();
      put_array(out, is_last ? frame.cancellations : std::vector<uint64_t>());
      writer.finish();
    } while (next < frame.additions.size());
  } catch (...) {
    out.resize(start);
    throw;
  }
}

void encode(const ReadyFrame& frame, std::string& out) {
  FrameWriter writer(out, FrameType::kReady);
  put_string(out, frame.model);
  for (const int32_t value : {frame.max_model_len, frame.vocab_size, frame.block_size, frame.num_blocks,
                              frame.max_num_seqs, frame.max_num_batched_tokens}) {
    put(out, value);
  }
  put_params(out, frame.defaults);
  for (const std::string* text : {&frame.token_table, &frame.vocabulary, &frame.loaded})
    put_string(out, *text);
  writer.finish();
}

void encode(const StepOutputs& frame, std::string& out) {
  FrameWriter writer(out, FrameType::kStep);
  const EngineStats& stats = frame.stats;
  put(out, stats.step);
  put(out, stats.num_running);
  put(out, stats.num_waiting);
  put(out, stats.num_free_blocks);
  put(out, stats.num_blocks);
  put(out, stats.num_preemptions);
  put(out, stats.prefix_cache_queries);
  put(out, stats.prefix_cache_hits);
  put(out, stats.num_prompt_tokens);
  put(out, stats.num_generation_tokens);
  put_array(out, frame.token_ids);
  put_array(out, frame.receipts);
  put(out, static_cast<uint32_t>(frame.releases.size()));
  for (const Release& release : frame.releases) {
    put(out, release.request_id);
    put(out, release.index);
    put(out, release.ids_begin);
    put(out, release.num_ids);
    put(out, release.num_text_ids);
    put(out, release.trim);
    put(out, static_cast<uint8_t>(release.is_first));
    put(out, release.open_text.bits());
    put(out, static_cast<uint8_t>(release.finish_reason));
    put(out, release.num_prompt_tokens);
    put(out, release.num_cached_tokens);
    put(out, release.receipt_idx);
    put_string(out, release.error);
    if (release.finish_reason != FinishReason::kStop) continue;
    put(out, release.stop_token_id);
    put_string(out, frame.stop_string(release));
  }
  put_logprobs(out, frame);
  writer.finish();
}

void encode_start_error(std::string_view message, std::string& out) {
  FrameWriter writer(out, FrameType::kStartError);
  out.append(message);
  writer.finish();
}

void decode_requests(std::string_view payload, RequestsFrame& frame) {
  Reader reader(payload);
  frame.additions.resize(reader.get_count(kMinRequestSize));
  for (NewRequest& request : frame.additions) get_request(reader, request);
  reader.get_array(frame.cancellations);
  reader.expect_end();
}

void decode_ready(std::string_view payload, ReadyFrame& frame) {
  Reader reader(payload);
  frame.model = reader.get_string();
  for (int32_t* value : {&frame.max_model_len, &frame.vocab_size, &frame.block_size, &frame.num_blocks,
                         &frame.max_num_seqs, &frame.max_num_batched_tokens}) {
    *value = reader.get<int32_t>();
  }
  get_params(reader, frame.defaults);
  for (std::string* text : {&frame.token_table, &frame.vocabulary, &frame.loaded})
    *text = reader.get_string();
  reader.expect_end();
}

void decode_step(std::string_view payload, StepOutputs& frame) {
  Reader reader(payload);
  EngineStats& stats = frame.stats;
  stats.step = reader.get<uint64_t>();
  stats.num_running = reader.get<uint32_t>();
  stats.num_waiting = reader.get<uint32_t>();
  stats.num_free_blocks = reader.get<uint32_t>();
  stats.num_blocks = reader.get<uint32_t>();
  stats.num_preemptions = reader.get<uint64_t>();
  stats.prefix_cache_queries = reader.get<uint64_t>();
  stats.prefix_cache_hits = reader.get<uint64_t>();
  stats.num_prompt_tokens = reader.get<uint64_t>();
  stats.num_generation_tokens = reader.get<uint64_t>();
  reader.get_array(frame.token_ids);
  reader.get_array(frame.receipts);
  frame.releases.resize(reader.get_count(kMinReleaseSize));
  frame.stop_strings.clear();
  for (Release& release : frame.releases) {
    get_release(reader, frame, release);
    const auto num_receipts = static_cast<int64_t>(frame.receipts.size());
    if (release.receipt_idx < -1 || release.receipt_idx >= num_receipts) {
      throw Error("wire: a release names receipt " + std::to_string(release.receipt_idx) + " of " +
                  std::to_string(num_receipts));
    }
  }
  get_logprobs(reader, frame);
  reader.expect_end();
}

}  // namespace quire::wire
