// What penalties know of a request: which tokens its prompt has, and how often its output has each.
//
// token_counts [max_num_seqs + 1, vocab_size] uint16: 0x8000 says that the token is in the prompt, the lower
// 15 bits how often it is in the output (32,767: that often or more). A row is written whole here when a
// request with penalties starts or resumes, and afterwards kept up to date by sample(). Nobody clears it.
#pragma once

#include <cstdint>

namespace quire::cpu {

struct TokenCountsParams {
  int32_t num_reqs = 0;
  int32_t vocab_size = 0;
  const int32_t* rows = nullptr;  // [num_reqs]: different ones
  const int32_t* token_offsets =
      nullptr;  // [num_reqs + 1]: request i's are token_ids[offsets[i], offsets[i + 1])
  const int32_t* prompt_lens = nullptr;  // [num_reqs]: how many of them are its prompt; the rest: its output
  const int32_t* token_ids = nullptr;    // ids outside the vocabulary are ignored
  uint16_t* token_counts = nullptr;      // [max_num_seqs + 1, vocab_size]
};

// Throws InvalidArgument for sizes that are not supported.
void token_counts(const TokenCountsParams& params);

}  // namespace quire::cpu
