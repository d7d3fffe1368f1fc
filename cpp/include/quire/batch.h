// One step's work as flat arrays: what the model runner reads. Owned by the scheduler, allocated once at its
// largest size. A batch holds until its own update() (EngineCore); the runner never writes it.
//
// Request i of the batch owns tokens [query_start_loc[i], query_start_loc[i + 1]).
#pragma once

#include <cstdint>
#include <vector>

#include "quire/logit_edits.h"

namespace quire {

// Largest number of mask_ids of one request.
constexpr int32_t kMaxMaskIds = 256;

struct Batch {
  int32_t num_reqs = 0;
  int32_t num_tokens = 0;
  int32_t num_sampled = 0;  // requests whose last token is in this batch: each gets one new token
  int32_t max_query_len = 0;
  int32_t max_seq_len = 0;
  int32_t num_prompt_rows = 0;  // tokens of prompts whose logits are wanted for their logprobs
  bool has_logprobs = false;    // some of num_logprobs are not 0

  // Per token, [num_tokens]
  // A negative id is ~row: the id that the batch before sampled for row `row` of block_tables, and that
  // nobody here knows yet. The device keeps the last id sampled for each row. Batches run in the order of
  // their launches, so a row that was given to another request meanwhile is safe: that request's tokens are
  // all known until it samples, and its first sample replaces what the row's former owner left there.
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;
  std::vector<int64_t> slot_mapping;  // block_id * block_size + offset; -1: its KV is there already

  // Per request, [num_reqs]
  std::vector<uint64_t> request_ids;
  std::vector<uint32_t> sequence_index;   // among the sequences of the request
  std::vector<int32_t> query_start_loc;   // [num_reqs + 1]
  std::vector<int32_t> seq_lens;          // tokens with KV after this step
  std::vector<int32_t> block_table_rows;  // row of block_tables

  // [max_num_seqs, max_blocks_per_request]; a running request keeps its row. Entries past its blocks are
  // stale. All batches share this table, and schedule() changes it: read it before the next schedule(), or
  // keep a copy by block_table_updates.
  const int32_t* block_tables = nullptr;
  int32_t block_table_stride = 0;
  int32_t num_block_table_rows = 0;
  // Pairs (row * block_table_stride + column, block id): every entry of block_tables that was set since the
  // schedule() before, each once. After forget_batches(): every entry that is in use.
  std::vector<int32_t> block_table_updates;  // [num_block_table_updates(), 2]

  // Pairs of block ids (source, destination): copies of whole blocks, keys and values of all layers, to be
  // made behind the batch before and ahead of this one. No destination is a source. Mostly none.
  std::vector<int32_t> block_copies;  // [num_block_copies(), 2], at most max_num_seqs of them

  // Per sampled request, [num_sampled], in the order of the ids that update() takes
  std::vector<int32_t> sample_token_idx;  // index in [0, num_tokens) whose logits are sampled
  std::vector<int32_t> sample_req_idx;    // index in [0, num_reqs)
  std::vector<int32_t> sample_rows;       // row of block_tables
  std::vector<float> temperature;         // 0: greedy
  std::vector<float> top_p;
  std::vector<int32_t> top_k;  // 0: off
  std::vector<uint64_t> seed;
  std::vector<int32_t>
      output_idx;  // how many tokens the request has produced: the counter of the random stream
  // ids that may not be sampled (min_tokens): row j masks [mask_offsets[j], mask_offsets[j + 1])
  std::vector<int32_t> mask_offsets;  // [num_sampled + 1]
  std::vector<int32_t> mask_ids;
  std::vector<int32_t> num_logprobs;  // the sampled id's and that many likeliest ones; 0: none
  BatchEdits edits;                   // of requests with penalties, biases and the like

  // Per row of prompt logprobs, [num_prompt_rows], in the order of the tokens
  std::vector<int32_t> prompt_token_idx;     // index in [0, num_tokens): a token whose logits are wanted
  std::vector<int32_t> prompt_req_idx;       // index in [0, num_reqs)
  std::vector<int32_t> prompt_next_ids;      // the token behind it, whose logprob is wanted
  std::vector<int32_t> prompt_num_logprobs;  // as num_logprobs; never 0

  int32_t num_block_copies() const { return static_cast<int32_t>(block_copies.size() / 2); }
  int32_t num_block_table_updates() const { return static_cast<int32_t>(block_table_updates.size() / 2); }
};

}  // namespace quire
