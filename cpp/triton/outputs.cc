#include "outputs.h"

#include <span>

#include "logprobs_json.h"
#include "output_table.h"
#include "quire/request_timing.h"

namespace quire::triton {

namespace {

using outputs::has;
using outputs::kTable;
using outputs::mask_of;

constexpr uint32_t kLogprobs = mask_of({Role::kDetokenizer}, "logprobs");
constexpr uint32_t kPromptLogprobs = mask_of({Role::kDetokenizer}, "prompt_logprobs");

}  // namespace

void finish_receipt(Answer& answer) {
  answer.receipt = answer.timing ? to_json(*answer.timing, static_cast<int64_t>(now_ns())) : "";
}

void finish(Answer& answer, uint32_t outputs, const TokenTable& token_table) {
  answer.text = answer.prompt_text;
  token_table.decode_to(std::span(answer.ids).first(answer.num_text_ids), answer.is_first, answer.trim,
                        answer.skip_special_tokens, answer.text, answer.open_text);
  finish_receipt(answer);
  if ((outputs & kLogprobs) != 0) {
    answer.logprobs_json =
        answer.has_logprobs ? logprobs_json(answer.logprobs, answer.num_per_id, false, token_table) : "null";
  }
  if ((outputs & kPromptLogprobs) != 0 && answer.index == 0) {
    answer.prompt_logprobs_json =
        logprobs_json(answer.prompt_logprobs, answer.num_per_prompt_place, true, token_table);
  }
}

uint32_t wanted_outputs(const GenerationRequest& request) {
  uint32_t wanted = 0;
  for (size_t i = 0; i < std::size(kTable); ++i) {
    if (kTable[i].is_wanted == nullptr || kTable[i].is_wanted(request)) wanted |= 1U << i;
  }
  return wanted;
}

uint32_t requested_outputs(TRITONBACKEND_Request* request, Sender sender, uint32_t outputs) {
  uint32_t requested = 0;
  for (size_t i = 0; i < std::size(kTable); ++i) {
    const uint32_t bit = outputs & 1U << i;
    if (bit != 0 && has(sender, kTable[i]) && is_requested(request, kTable[i].name)) requested |= bit;
  }
  return requested;
}

void write_outputs(ResponseBuilder& response, Sender sender, uint32_t outputs, const Answers& answers) {
  for (size_t i = 0; i < std::size(kTable); ++i) {
    const OutputSpec& spec = kTable[i];
    if ((outputs & 1U << i) == 0 || !has(sender, spec)) continue;
    if (sender.role != Role::kUnary && spec.is_there != nullptr && !spec.is_there(answers)) continue;
    spec.write(response, spec, answers);
  }
}

}  // namespace quire::triton
