// The fields that CPU and CUDA kernels of the same name share, in the order of their arguments. P: the Params
// of either.
#pragma once

#include "bindings/kernel.h"

namespace quire::bindings {

template <class P>
auto sample_fields() {
  return fields(field<&P::dtype>("dtype"), field<&P::num_rows>("num_rows"),
                field<&P::vocab_size>("vocab_size"), field<&P::logits>("logits"),
                field<&P::stride_logits>("stride_logits"), field<&P::temperature>("temperature"),
                field<&P::top_k>("top_k"), field<&P::top_p>("top_p"), field<&P::seed>("seed"),
                field<&P::output_idx>("output_idx"), field<&P::out>("out"));
}

// None of them by default.
template <class P>
auto sample_edit_fields() {
  return fields(field<&P::min_p>("min_p", 0), field<&P::repetition_penalty>("repetition_penalty", 0),
                field<&P::presence_penalty>("presence_penalty", 0),
                field<&P::frequency_penalty>("frequency_penalty", 0),
                field<&P::token_counts>("token_counts", 0), field<&P::mask_rows>("mask_rows", 0),
                field<&P::token_masks>("token_masks", 0), field<&P::bias_offsets>("bias_offsets", 0),
                field<&P::bias_ids>("bias_ids", 0), field<&P::biases>("biases", 0));
}

template <class P>
auto token_counts_fields() {
  return fields(field<&P::num_reqs>("num_reqs"), field<&P::vocab_size>("vocab_size"), field<&P::rows>("rows"),
                field<&P::token_offsets>("token_offsets"), field<&P::prompt_lens>("prompt_lens"),
                field<&P::token_ids>("token_ids"), field<&P::token_counts>("token_counts"));
}

template <class P>
auto logprobs_fields() {
  return fields(field<&P::dtype>("dtype"), field<&P::num_rows>("num_rows"),
                field<&P::vocab_size>("vocab_size"), field<&P::logits>("logits"),
                field<&P::stride_logits>("stride_logits"), field<&P::token_ids>("token_ids"),
                field<&P::num_logprobs>("num_logprobs"), field<&P::token_logprobs>("token_logprobs"),
                field<&P::token_ranks>("token_ranks"), field<&P::top_ids>("top_ids"),
                field<&P::top_logprobs>("top_logprobs"));
}

}  // namespace quire::bindings
