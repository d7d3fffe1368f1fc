// What generation sends to the detokenizer: everything that decoding a run of ids needs, so that decoding is
// a pure function of it. It lives for one hop inside one process, and through the hands of whoever calls the
// models themselves: its seal says that this process made it, so that no one can speak for a sequence of
// another.
//
//   Seal | u32 number of chunks | chunks, encoded as on the wire (wire_structs.h)
//
// The tensor holds one chunk, or one for each of a request's n sequences that share a response.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/error.h"
#include "quire/request.h"
#include "seal.h"
#include "wire_structs.h"

namespace quire::triton {

struct Chunk {
  uint64_t owner = 0;  // which loaded generation model (Generation::id)
  uint64_t request_id = 0;
  int64_t sent_ns = 0;       // when generation handed it to the server
  uint32_t batch_index = 0;  // of the prompt among those of its request
  uint32_t index = 0;        // of the sequence
  uint32_t outputs = 0;      // that the request wants (outputs.h)
  bool is_probe = false;     // no ids: asks whether anybody still waits; answered by no response
  bool acknowledge = false;  // generation waits for the acknowledgement before it sends the next
  bool is_first = false;     // nothing before this run took part in the text
  bool skip_special_tokens = false;
  OpenText open_text;
  uint32_t num_text_ids = 0;  // the first so many carry text
  int32_t trim = 0;           // bytes to drop from the end of the text
  FinishReason finish_reason = FinishReason::kNone;
  Usage usage;
  float cumulative_logprob = 0;       // of all ids up to here
  uint32_t num_per_id = 0;            // logprobs; 0: not asked for
  bool has_logprobs = false;          // the request gave the field logprobs
  uint32_t num_per_prompt_place = 0;  // 0: not asked for, or not in this chunk
  std::vector<int32_t> ids;
  std::vector<int32_t> prompt_ids;       // where output_ids begins with them
  std::vector<Logprob> logprobs;         // [num ids, num_per_id]
  std::vector<Logprob> prompt_logprobs;  // [places, num_per_prompt_place]
  std::string prompt_text;
  std::vector<std::string> warnings;
  std::string stop_reason;
  std::optional<RequestTiming> timing;  // for the receipt
};

}  // namespace quire::triton

namespace quire {

QUIRE_MEMBERS(triton::Chunk,
              QUIRE_OPTIONAL(owner, request_id, sent_ns, batch_index, index, outputs, is_probe, acknowledge,
                             is_first, skip_special_tokens, open_text, num_text_ids, trim, finish_reason,
                             usage, cumulative_logprob, num_per_id, has_logprobs, num_per_prompt_place, ids,
                             prompt_ids, logprobs, prompt_logprobs, prompt_text, warnings, stop_reason,
                             timing));

}  // namespace quire

namespace quire::triton {

// The tensor of `chunks`, which are Chunks or derived of it.
template <class T>
std::string write_chunks(std::span<const T> chunks) {
  std::string bytes(sizeof(Seal), '\0');
  wire::put(bytes, static_cast<uint32_t>(chunks.size()));
  for (const Chunk& chunk : chunks) wire::write(bytes, chunk);
  const Seal seal = seal_of(std::string_view(bytes).substr(sizeof(seal)));
  std::memcpy(bytes.data(), &seal, sizeof(seal));
  return bytes;
}

// Reads the tensor into `chunks`, whose memory is reused. Throws InvalidArgument for bytes that
// write_chunks() of this process did not make.
template <class T>
void read_chunks(std::string_view bytes, std::vector<T>& chunks) {
  Seal seal{};
  std::memcpy(&seal, bytes.data(), std::min(bytes.size(), sizeof(seal)));
  if (bytes.size() < sizeof(seal) || seal_of(bytes.substr(sizeof(seal))) != seal) {
    throw InvalidArgument("chunk", std::to_string(bytes.size()) + " bytes with another seal",
                          "the output 'chunk' of a generation model of this server, unchanged");
  }
  wire::Reader reader(bytes.substr(sizeof(seal)));
  chunks.resize(reader.get<uint32_t>());
  for (Chunk& chunk : chunks) wire::read(reader, chunk);
}

}  // namespace quire::triton
