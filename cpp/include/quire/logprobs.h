// Logprobs on their way from a step to a client: rows as a model runner gives them, and what is kept of a
// request until its ids leave.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "quire/sampling.h"

namespace quire {

// One token at one place of a sequence. A place has 1 + n of them: the token that stands there, then the n
// likeliest ones, in order (the former may be among them).
struct Logprob {
  int32_t token_id = -1;  // -1: there are fewer than n tokens with a logit above -inf
  float logprob = 0;      // NaN: the logits are not finite
  int32_t rank = 0;       // 1: the likeliest token; 0: the logits are not finite
};
static_assert(sizeof(Logprob) == 12, "copied as bytes");

// The numbers of several rows of logits, as the kernels write them (quire/kernels/sampling.h).
struct LogprobRows {
  std::span<const float> token_logprobs;  // [num_rows]
  std::span<const int32_t> token_ranks;   // [num_rows]
  std::span<const int32_t> top_ids;       // [num_rows, kMaxLogprobs]
  std::span<const float> top_logprobs;    // [num_rows, kMaxLogprobs]

  // Throws InvalidArgument unless there are at least num_rows of them, or, when num_rows is 0, anything.
  void require(const char* field, int32_t num_rows) const;
};

// What a runner gives beside the ids of a batch that asks for it.
struct StepLogprobs {
  LogprobRows sampled;  // [batch.num_sampled], when batch.has_logprobs
  LogprobRows prompt;   // [batch.num_prompt_rows]
};

// Logprobs of one request that asks for them.
class RequestLogprobs {
 public:
  // num_logprobs, num_prompt_logprobs: as in SamplingParams.
  RequestLogprobs(std::optional<int32_t> num_logprobs, std::optional<int32_t> num_prompt_logprobs,
                  int32_t num_prompt_tokens);

  // Logprobs of each place; 0: not asked for.
  uint32_t num_per_id() const { return num_per_id_; }
  uint32_t num_per_prompt_place() const { return num_per_prompt_place_; }  // 0 once they have left

  // Adds those of the next output id.
  void push(int32_t token_id, const LogprobRows& rows, int32_t row);
  // Adds those of the prompt's token at place + 1, which the logits at `place` predict.
  void set_prompt(int32_t place, int32_t token_id, const LogprobRows& rows, int32_t row);

  // The first num_ids that are kept leave: appended to `out`.
  void release(uint32_t num_ids, std::vector<Logprob>& out);
  // The prompt's leave, once.
  void release_prompt(std::vector<Logprob>& out);
  // The sum over all ids released.
  double cumulative_logprob() const { return cumulative_logprob_; }

 private:
  uint32_t num_per_id_;
  uint32_t num_per_prompt_place_;
  std::vector<Logprob> held_;    // [ids that have not left, num_per_id]
  std::vector<Logprob> prompt_;  // [num_prompt_tokens - 1, num_per_prompt_place]; empty once they left
  double cumulative_logprob_ = 0;
};

}  // namespace quire
