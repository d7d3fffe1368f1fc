// What penalties know of a request: which tokens its prompt has, and how often its output has each.
//
// token_counts [max_num_seqs + 1, vocab_size] uint16, one row per block-table row: 0x8000 says that the token
// is in the prompt, the lower 15 bits how often it is in the output (32,767: that often or more). The memory
// is the caller's and needs no initial value: a row is written whole here when a request with penalties gets
// it, be it new or resumed, and afterwards kept up to date by launch_sample. Nobody clears a row when its
// request ends; rows of requests without penalties are never read.
#pragma once

#include <cstdint>

#include "quire/cuda/stream.h"

namespace quire::cuda {

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

// Before the first launch_sample that has the request. Throws std::invalid_argument for sizes that are not
// supported and std::runtime_error when the launch fails.
void launch_token_counts(const TokenCountsParams& params, cudaStream_t stream);

}  // namespace quire::cuda
