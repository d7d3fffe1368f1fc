// The record that generation sends to the detokenizer: everything that decoding a run of ids needs, so that
// decoding is a pure function of it. It lives for one hop inside one process; the version guards mixed
// configurations.
//
//   ChunkHeader | int32 ids [num_ids] | prompt text [prompt_text_size] | warnings [warnings_size]
//   | receipt [receipt_size]
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/error.h"
#include "quire/receipt.h"
#include "quire/sampling.h"

namespace quire::triton {

enum ChunkFlags : uint32_t {
  kChunkIsFirst = 1,  // nothing before this run took part in the text
  kChunkSkipSpecialTokens = 2,
  kChunkProbe = 4,        // no ids: asks whether anybody still waits; answered by no response
  kChunkAcknowledge = 8,  // generation waits for the acknowledgement before it sends the next
  kChunkReturnFinishReason = 16,
  kChunkReturnNumInputTokens = 32,
  kChunkReturnNumOutputTokens = 64,
};

struct ChunkHeader {
  uint32_t version = kVersion;
  uint32_t flags = 0;  // ChunkFlags
  uint64_t owner = 0;  // which loaded generation model (Generation::id)
  uint64_t sequence_id = 0;
  uint32_t num_ids = 0;
  uint32_t num_text_ids = 0;   // the first so many carry text
  int32_t trim = 0;            // bytes to drop from the end of the text
  uint32_t finish_reason = 0;  // FinishReason
  uint32_t num_input_tokens = 0;
  uint32_t prompt_text_size = 0;
  uint32_t open_text = 0;  // OpenText
  uint32_t warnings_size = 0;
  uint32_t receipt_size = 0;  // 0, or sizeof(Receipt)
  uint32_t unused = 0;

  static constexpr uint32_t kVersion = 0x51430003;  // "QC", 3
};
static_assert(sizeof(ChunkHeader) == 64, "no padding: the record is copied as bytes");

struct Chunk {
  ChunkHeader header;
  std::span<const int32_t> ids;
  std::string_view prompt_text;
  std::string_view warnings;  // a STRING tensor's bytes
  std::string_view receipt;   // a Receipt's bytes, or empty
};

inline size_t chunk_size(const Chunk& chunk) {
  return sizeof(ChunkHeader) + chunk.ids.size_bytes() + chunk.prompt_text.size() + chunk.warnings.size() +
         chunk.receipt.size();
}

// Writes chunk_size() bytes; the header's sizes are taken from the spans.
inline void write_chunk(Chunk chunk, char* out) {
  chunk.header.num_ids = static_cast<uint32_t>(chunk.ids.size());
  chunk.header.prompt_text_size = static_cast<uint32_t>(chunk.prompt_text.size());
  chunk.header.warnings_size = static_cast<uint32_t>(chunk.warnings.size());
  chunk.header.receipt_size = static_cast<uint32_t>(chunk.receipt.size());
  std::memcpy(out, &chunk.header, sizeof(ChunkHeader));
  out += sizeof(ChunkHeader);
  if (!chunk.ids.empty()) std::memcpy(out, chunk.ids.data(), chunk.ids.size_bytes());
  out += chunk.ids.size_bytes();
  for (const std::string_view text : {chunk.prompt_text, chunk.warnings, chunk.receipt}) {
    if (!text.empty()) std::memcpy(out, text.data(), text.size());
    out += text.size();
  }
}

// The JSON of a chunk's receipt; the request ends now, with its text.
inline std::string finish_receipt(const Chunk& chunk, uint64_t now_ns) {
  Receipt receipt;
  std::memcpy(&receipt, chunk.receipt.data(), sizeof(receipt));
  return to_json(receipt, static_cast<int64_t>(now_ns));
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

// Throws InvalidArgument for bytes that write_chunk() cannot have made. `ids` keeps the ids (the bytes may be
// unaligned).
inline Chunk read_chunk(std::string_view bytes, std::vector<int32_t>& ids) {
  const auto refuse = [&](const std::string& what) {
    throw InvalidArgument("chunk", what,
                          "the output 'chunk' of a generation model of this server, unchanged");
  };
  Chunk chunk;
  if (bytes.size() < sizeof(ChunkHeader)) refuse(std::to_string(bytes.size()) + " bytes");
  std::memcpy(&chunk.header, bytes.data(), sizeof(ChunkHeader));
  const ChunkHeader& header = chunk.header;
  if (header.version != ChunkHeader::kVersion) refuse("version " + std::to_string(header.version));
  const uint64_t ids_size = uint64_t{header.num_ids} * sizeof(int32_t);
  const uint64_t texts_size = uint64_t{header.prompt_text_size} + header.warnings_size + header.receipt_size;
  if (bytes.size() != sizeof(ChunkHeader) + ids_size + texts_size) {
    refuse(std::to_string(bytes.size()) + " bytes for " + std::to_string(header.num_ids) + " ids");
  }
  if (header.num_text_ids > header.num_ids || header.trim < 0 ||
      header.finish_reason > static_cast<uint32_t>(kLastFinishReason) ||
      (header.receipt_size != 0 && header.receipt_size != sizeof(Receipt))) {
    refuse("values out of range");
  }
  ids.resize(header.num_ids);
  if (!ids.empty()) std::memcpy(ids.data(), bytes.data() + sizeof(ChunkHeader), ids_size);
  chunk.ids = ids;
  chunk.prompt_text = bytes.substr(sizeof(ChunkHeader) + ids_size, header.prompt_text_size);
  chunk.warnings =
      bytes.substr(sizeof(ChunkHeader) + ids_size + header.prompt_text_size, header.warnings_size);
  chunk.receipt = bytes.substr(bytes.size() - header.receipt_size);
  if (count_strings(chunk.warnings) < 0) refuse("damaged warnings");
  return chunk;
}

}  // namespace quire::triton
