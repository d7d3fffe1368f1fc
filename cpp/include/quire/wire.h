// The protocol between the native backend (client) and the engine process, over one stream socket.
//
// Every frame: magic "QUIR", version, type, payload length, payload. Integers are little endian, fixed width.
// A side that reads an unknown magic, version or type closes the connection with a message naming both
// versions.
//   client -> engine  kRequests : any number of additions and cancellations
//   engine -> client  kReady    : once, when requests can be served: limits and the token table
//                     kStartError: instead of kReady; then the engine exits
//                     kStep     : one per engine step with something to say
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/request.h"

namespace quire::wire {

constexpr uint32_t kMagic = 0x52495551;  // "QUIR"
constexpr uint16_t kVersion = 7;
constexpr uint32_t kMaxPayload = 1u << 30;
constexpr size_t kRequestsPayload = 1u << 24;  // additions are cut into frames of about so many bytes

enum class FrameType : uint16_t { kRequests = 1, kReady = 2, kStartError = 3, kStep = 4 };

struct FrameHeader {
  uint32_t magic = kMagic;
  uint16_t version = kVersion;
  FrameType type = FrameType::kStep;
  uint32_t payload_size = 0;
};
constexpr size_t kHeaderSize = 12;

// Throws Error naming what was read and what is spoken here.
FrameHeader parse_header(std::span<const char, kHeaderSize> bytes);

struct RequestsFrame {
  std::vector<NewRequest> additions;
  std::vector<uint64_t> cancellations;
};

struct Setting {
  std::string name;
  std::string value;
};

struct ReadyFrame {
  std::string model;  // as in model.json
  int32_t max_model_len = 0;
  int32_t vocab_size = 0;
  int32_t block_size = 0;
  int32_t num_blocks = 0;
  int32_t max_num_seqs = 0;
  int32_t max_num_batched_tokens = 0;
  SamplingParams defaults;            // what a request that does not say otherwise gets
  std::string token_table;            // TokenTable::serialize()
  std::string vocabulary;             // whose ids these are: a fingerprint, a space, a name; "": not told
  std::string loaded;                 // for the engine that takes this one's place, which gets it as --loaded
  bool disable_log_stats = false;     // the setting: nothing of this engine is on /metrics
  std::vector<Setting> cache_config;  // how the KV cache is set up, for /metrics
  EngineStats stats;                  // at the start
};

}  // namespace quire::wire

namespace quire {

QUIRE_MEMBERS(wire::RequestsFrame, QUIRE_OPTIONAL(additions, cancellations));
QUIRE_MEMBERS(wire::Setting, QUIRE_OPTIONAL(name, value));
QUIRE_MEMBERS(wire::ReadyFrame, QUIRE_OPTIONAL(model, max_model_len, vocab_size, block_size, num_blocks,
                                               max_num_seqs, max_num_batched_tokens, defaults, token_table,
                                               vocabulary, loaded, disable_log_stats, cache_config, stats));

}  // namespace quire

namespace quire::wire {

// encode_* append one whole frame, header included, to `out`, or throw and leave it as it was.
// Requests are as many frames as it takes: each but the last has payloads of at most max_payload, or one
// addition. The cancellations are in the last.
void encode(const RequestsFrame& frame, std::string& out, size_t max_payload = kRequestsPayload);
void encode(const ReadyFrame& frame, std::string& out);
void encode(const StepOutputs& frame, std::string& out);
void encode_start_error(std::string_view message, std::string& out);

// decode_* take a payload; throw Error when it is truncated, oversized or inconsistent. Vectors are reused.
void decode_requests(std::string_view payload, RequestsFrame& frame);
void decode_ready(std::string_view payload, ReadyFrame& frame);
void decode_step(std::string_view payload, StepOutputs& frame);

}  // namespace quire::wire
