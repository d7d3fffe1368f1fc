// The outputs of roles generation, detokenizer and unary. output_table.h lists them.
//
// An output is a bit of a mask, by its place in the table. Role generation sends those that a client asks for
// by name. The fields of a request (return_...) say which ones a detokenizer or role unary may send; of these
// they send what the client, or the ensemble, asks for by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "chunk.h"
#include "generation_request.h"
#include "quire/token_table.h"

namespace quire::triton {

class ResponseBuilder;

// What one sequence has in a response: its chunk, and what is made of it.
struct Answer : Chunk {
  std::string text;
  std::string receipt;  // JSON; "": none
  std::string logprobs_json;
  std::string prompt_logprobs_json;
};

// The answers of a response, those of one prompt's sequences side by side.
struct Answers {
  std::span<const Answer> all;
  size_t num_per_prompt;
};

struct OutputSpec {
  const char* name;
  TRITONSERVER_DataType type;
  uint32_t senders;  // bits, see output_table.h
  void (*write)(ResponseBuilder& response, const OutputSpec& spec, const Answers& answers);
  // Whether the fields of a request want it; null: always.
  bool (*is_wanted)(const GenerationRequest& request) = nullptr;
  // Whether a response of a stream has it; null: each has. The one response of role unary has all.
  bool (*is_there)(const Answers& answers) = nullptr;
};

// Makes the texts of an answer that `outputs` has. The chunk: whole.
void finish(Answer& answer, uint32_t outputs, const TokenTable& token_table);
// Makes the receipt of an answer, which ends now; "" where its chunk has no times.
void finish_receipt(Answer& answer);

// The outputs that the fields of a request want.
uint32_t wanted_outputs(const GenerationRequest& request);
// The ones of `outputs` that a client asks for by name.
uint32_t requested_outputs(TRITONBACKEND_Request* request, Sender sender, uint32_t outputs = ~0U);
void write_outputs(ResponseBuilder& response, Sender sender, uint32_t outputs, const Answers& answers);

}  // namespace quire::triton
