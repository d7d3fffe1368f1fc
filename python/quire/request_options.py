"""`RequestOptions`: how an answer is sent, and what comes with it."""

from __future__ import annotations

from dataclasses import dataclass

from quire.errors import InvalidArgument
from quire.field import spec
from quire.table import Table


@dataclass(frozen=True, kw_only=True)
class RequestOptions(Table):
    """How the answer is sent and what comes with it. In the ensemble these are also input tensors."""

    stream: bool = spec(False, aliases=("streaming",))
    """Send text as it is generated."""
    exclude_input_in_output: bool | None = spec(
        None,
        aliases=("exclude_input_from_output", "sampling_param_exclude_input_from_output"),
        opposites=("echo", "return_full_text"),
    )
    """Leave the prompt out of text_output. Default: true when streaming (false is an error), else what the
    tokenizer's config.pbtxt says, or false."""
    return_finish_reason: bool = spec(False)
    """Also answer finish_reason."""
    return_stop_reason: bool = spec(False)
    """Also answer stop_reason: the stop string or the id of the stop token that ended it."""
    return_cumulative_logprob: bool = spec(False)
    """Also answer cumulative_logprob: the sum of the log probabilities of the output's tokens."""
    return_logprobs: bool = spec(False, aliases=("return_log_probs",))
    """Also answer logprobs (JSON): of each token and of the `logprobs` likeliest ones; null where `logprobs`
    is not given."""
    return_num_input_tokens: bool = spec(False)
    """Also answer num_input_tokens."""
    return_num_output_tokens: bool = spec(False)
    """Also answer num_output_tokens, of this chunk."""
    return_token_ids: bool = spec(False)
    """Also answer output_ids, of this chunk."""
    return_receipt: bool = spec(False)
    """Also answer receipt (JSON) at the end: where the request's time went."""
    strict: bool = spec(True)
    """false: names that are unknown or not supported yet are ignored, and listed in the output warnings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stream and self.exclude_input_in_output is False:
            raise InvalidArgument("exclude_input_in_output", "false with stream true", "true when streaming")

    @property
    def includes_prompt(self) -> bool:
        """Whether the prompt's text precedes the answer's."""
        if self.exclude_input_in_output is None:
            return not self.stream
        return not self.exclude_input_in_output
