// Codec of wire.h. A payload is its struct (wire_structs.h): RequestsFrame, ReadyFrame, StepOutputs; that of
// kStartError is the message.
#include "quire/wire.h"

#include <cstring>

#include "quire/error.h"
#include "wire_structs.h"

namespace quire::wire {

namespace {

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

template <class Frame>
void write_frame(const Frame& frame, FrameType type, std::string& out) {
  FrameWriter writer(out, type);
  write(out, frame);
  writer.finish();
}

template <class Frame>
void read_frame(std::string_view payload, Frame& frame) {
  Reader reader(payload);
  read(reader, frame);
  reader.expect_end();
}

void require(bool holds, const char* what) {
  if (!holds) throw Error(std::string("wire: a release ") + what);
}

void check_release(const StepOutputs& step, const Release& release) {
  require(uint64_t{release.ids_begin} + release.num_ids <= step.token_ids.size(),
          "names ids that are not there");
  require(release.num_text_ids <= release.num_ids, "has more ids with text than ids");
  require(release.trim >= 0, "trims less than nothing");
  if (!release.details) return;
  const ReleaseDetails& details = *release.details;
  require(release.finish_reason == FinishReason::kStop ||
              (details.stop_token_id == -1 && details.stop_string.empty()),
          "has a stop reason and did not stop");
  require(details.num_per_id <= kMaxLogprobs + 1 && details.num_per_prompt_place <= kMaxLogprobs + 1,
          "has too many logprobs for an id or a place of the prompt");
  require(details.logprobs.size() == size_t{release.num_ids} * details.num_per_id,
          "has another number of logprobs than its ids");
  const size_t num_prompt_logprobs = details.prompt_logprobs.size();
  require(details.num_per_prompt_place == 0 ? num_prompt_logprobs == 0
                                            : num_prompt_logprobs % details.num_per_prompt_place == 0,
          "has logprobs of part of a place of the prompt");
}

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
        write(out, frame.additions[next]);
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

void encode(const ReadyFrame& frame, std::string& out) { write_frame(frame, FrameType::kReady, out); }

void encode(const StepOutputs& frame, std::string& out) { write_frame(frame, FrameType::kStep, out); }

void encode_start_error(std::string_view message, std::string& out) {
  FrameWriter writer(out, FrameType::kStartError);
  out.append(message);
  writer.finish();
}

void decode_requests(std::string_view payload, RequestsFrame& frame) { read_frame(payload, frame); }

void decode_ready(std::string_view payload, ReadyFrame& frame) { read_frame(payload, frame); }

void decode_step(std::string_view payload, StepOutputs& frame) {
  read_frame(payload, frame);
  for (const Release& release : frame.releases) check_release(frame, release);
  for (const Observation& observation : frame.observations) {
    if (observation.histogram >= kNumHistograms) {
      throw Error("wire: an observation of histogram " + std::to_string(observation.histogram) + " of " +
                  std::to_string(kNumHistograms));
    }
  }
}

}  // namespace quire::wire
