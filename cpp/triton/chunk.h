// The record that generation sends to the detokenizer: everything that decoding a run of ids needs, so that
// decoding is a pure function of it. It lives for one hop inside one process, and through the hands of
// whoever calls the models themselves: its seal says that this process made it, so that no one can speak for
// a sequence of another. The version guards mixed configurations.
//
//   ChunkHeader | Usage | int32 ids [num_ids] | Logprob [num_ids, num_per_id] | Logprob [num_prompt_places,
//   num_per_prompt_place] | prompt text [prompt_text_size] | warnings [warnings_size] | stop reason
//   [stop_reason_size] | RequestTiming, with kChunkHasReceipt
//
// The tensor holds one chunk, or one for each of a request's n sequences that share a response, back to back.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "quire/error.h"
#include "quire/logprobs.h"
#include "quire/request.h"
#include "quire/request_timing.h"
#include "quire/sampling.h"
#include "seal.h"

namespace quire::triton {

enum ChunkFlags : uint32_t {
  kChunkIsFirst = 1,  // nothing before this run took part in the text
  kChunkSkipSpecialTokens = 2,
  kChunkProbe = 4,        // no ids: asks whether anybody still waits; answered by no response
  kChunkAcknowledge = 8,  // generation waits for the acknowledgement before it sends the next
  kChunkHasReceipt = 16,
};

struct ChunkHeader {
  uint32_t version = kVersion;
  uint32_t flags = 0;  // ChunkFlags
  uint64_t owner = 0;  // which loaded generation model (Generation::id)
  uint64_t request_id = 0;
  uint32_t num_ids = 0;
  uint32_t num_text_ids = 0;   // the first so many carry text
  int32_t trim = 0;            // bytes to drop from the end of the text
  uint32_t finish_reason = 0;  // FinishReason
  uint32_t prompt_text_size = 0;
  uint32_t open_text = 0;  // OpenText
  uint32_t warnings_size = 0;
  uint32_t stop_reason_size = 0;
  uint32_t num_per_id = 0;  // logprobs; 0: not asked for
  uint32_t num_prompt_places = 0;
  uint32_t num_per_prompt_place = 0;  // 0: not asked for, or not in this chunk
  float cumulative_logprob = 0;       // of all ids up to here
  uint32_t index = 0;                 // of the sequence
  uint32_t outputs = 0;               // that the request wants (outputs.h)
  Seal seal = {};                     // seal_of() the header up to here and what follows it

  static constexpr uint32_t kVersion = 0x51430006;  // "QC", 6
};
static_assert(sizeof(ChunkHeader) == 96, "no padding: the record is copied as bytes");
static_assert(std::has_unique_object_representations_v<Usage>, "copied as bytes, too");
constexpr size_t kSealOffset = sizeof(ChunkHeader) - sizeof(Seal);

struct Chunk {
  ChunkHeader header;
  Usage usage;
  std::span<const int32_t> ids;
  std::string_view prompt_text;
  std::string_view warnings;  // a STRING tensor's bytes
  std::string_view stop_reason;
  std::string_view receipt;                  // a RequestTiming's bytes, or empty
  std::span<const Logprob> logprobs;         // [num_ids, num_per_id]
  std::span<const Logprob> prompt_logprobs;  // [num_prompt_places, num_per_prompt_place]
};

inline size_t chunk_size(const Chunk& chunk) {
  return sizeof(ChunkHeader) + sizeof(Usage) + chunk.ids.size_bytes() + chunk.logprobs.size_bytes() +
         chunk.prompt_logprobs.size_bytes() + chunk.prompt_text.size() + chunk.warnings.size() +
         chunk.stop_reason.size() + chunk.receipt.size();
}

// Writes chunk_size() bytes and returns their end. The header's sizes are taken from the spans, but for the
// shapes of logprobs.
inline char* write_chunk(Chunk chunk, char* out) {
  chunk.header.num_ids = static_cast<uint32_t>(chunk.ids.size());
  chunk.header.prompt_text_size = static_cast<uint32_t>(chunk.prompt_text.size());
  chunk.header.warnings_size = static_cast<uint32_t>(chunk.warnings.size());
  chunk.header.stop_reason_size = static_cast<uint32_t>(chunk.stop_reason.size());
  if (!chunk.receipt.empty()) chunk.header.flags |= kChunkHasReceipt;
  char* const begin = out;
  const auto write = [&](const void* bytes, size_t size) {
    if (size > 0) std::memcpy(out, bytes, size);
    out += size;
  };
  write(&chunk.header, sizeof(ChunkHeader));
  write(&chunk.usage, sizeof(Usage));
  write(chunk.ids.data(), chunk.ids.size_bytes());
  for (const auto& logprobs : {chunk.logprobs, chunk.prompt_logprobs}) {
    write(logprobs.data(), logprobs.size_bytes());
  }
  for (const std::string_view text : {chunk.prompt_text, chunk.warnings, chunk.stop_reason, chunk.receipt}) {
    write(text.data(), text.size());
  }
  const char* const rest = begin + sizeof(ChunkHeader);
  const Seal seal = seal_of({begin, kSealOffset}, {rest, static_cast<size_t>(out - rest)});
  std::memcpy(begin + kSealOffset, &seal, sizeof(seal));
  return out;
}

// Elements of a STRING tensor, each a u32 length and its bytes; -1 where the bytes are no such thing.
inline int64_t count_strings(std::string_view bytes) {
  int64_t count = 0;
  while (!bytes.empty()) {
    uint32_t size = 0;
    if (bytes.size() < sizeof(size)) return -1;
    std::memcpy(&size, bytes.data(), sizeof(size));
    if (bytes.size() - sizeof(size) < size) return -1;
    bytes.remove_prefix(sizeof(size) + size);
    ++count;
  }
  return count;
}

// Takes one chunk from the front of `bytes`. Its ids and logprobs (those in `bytes` may be unaligned) go to
// the front of `ids` and `logprobs`, which have room for them and are moved after them.
inline Chunk take_chunk(std::string_view& bytes, std::span<int32_t>& ids, std::span<Logprob>& logprobs) {
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument("chunk", what,
                          "the output 'chunk' of a generation model of this server, unchanged");
  };
  const auto take = [&](size_t size) {
    const std::string_view taken = bytes.substr(0, size);
    bytes.remove_prefix(size);
    return taken;
  };
  const auto take_array = [&]<class T>(std::span<T>& room, size_t count) {
    const std::span<T> values = room.first(count);
    room = room.subspan(count);
    const std::string_view taken = take(values.size_bytes());
    if (count > 0) std::memcpy(values.data(), taken.data(), taken.size());
    return std::span<const T>(values);
  };
  Chunk chunk;
  ChunkHeader& header = chunk.header;
  const std::string_view whole = bytes;
  const size_t num_bytes = bytes.size();
  if (num_bytes < sizeof(ChunkHeader)) refuse(std::to_string(num_bytes) + " bytes");
  std::memcpy(&header, take(sizeof(ChunkHeader)).data(), sizeof(ChunkHeader));
  if (header.version != ChunkHeader::kVersion) refuse("version " + std::to_string(header.version));
  if (header.num_per_id > kMaxLogprobs + 1 || header.num_per_prompt_place > kMaxLogprobs + 1 ||
      header.num_text_ids > header.num_ids || header.trim < 0 ||
      header.finish_reason > static_cast<uint32_t>(kLastFinishReason)) {
    refuse("values out of range");
  }
  const uint64_t num_logprobs = uint64_t{header.num_ids} * header.num_per_id;
  const uint64_t num_prompt_logprobs = uint64_t{header.num_prompt_places} * header.num_per_prompt_place;
  const uint64_t arrays_size = sizeof(Usage) + uint64_t{header.num_ids} * sizeof(int32_t) +
                               (num_logprobs + num_prompt_logprobs) * sizeof(Logprob);
  const size_t receipt_size = (header.flags & kChunkHasReceipt) != 0 ? sizeof(RequestTiming) : 0;
  const uint64_t texts_size =
      uint64_t{header.prompt_text_size} + header.warnings_size + header.stop_reason_size + receipt_size;
  if (bytes.size() < arrays_size + texts_size) {
    refuse(std::to_string(num_bytes) + " bytes for " + std::to_string(header.num_ids) + " ids");
  }
  const std::string_view rest = whole.substr(sizeof(ChunkHeader), arrays_size + texts_size);
  if (seal_of(whole.substr(0, kSealOffset), rest) != header.seal) refuse("bytes with another seal");
  std::memcpy(&chunk.usage, take(sizeof(Usage)).data(), sizeof(Usage));
  chunk.ids = take_array(ids, header.num_ids);
  chunk.logprobs = take_array(logprobs, num_logprobs);
  chunk.prompt_logprobs = take_array(logprobs, num_prompt_logprobs);
  chunk.prompt_text = take(header.prompt_text_size);
  chunk.warnings = take(header.warnings_size);
  chunk.stop_reason = take(header.stop_reason_size);
  chunk.receipt = take(receipt_size);
  return chunk;
}

// Throws InvalidArgument for bytes that write_chunk() cannot have made. `ids` and `logprobs` keep what the
// chunks view, but for the texts, which are those of `bytes`. At least one chunk.
inline void read_chunks(std::string_view bytes, std::vector<Chunk>& chunks, std::vector<int32_t>& ids,
                        std::vector<Logprob>& logprobs) {
  chunks.clear();
  ids.resize(bytes.size() / sizeof(int32_t));
  logprobs.resize(bytes.size() / sizeof(Logprob));
  std::span<int32_t> room_for_ids = ids;
  std::span<Logprob> room_for_logprobs = logprobs;
  do {
    chunks.push_back(take_chunk(bytes, room_for_ids, room_for_logprobs));
  } while (!bytes.empty());
}

}  // namespace quire::triton
