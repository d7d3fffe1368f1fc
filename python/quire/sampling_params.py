"""The one schema of request fields: `SamplingParams` (what to generate), `RequestOptions` (what to send),
`ChatOptions` (what to answer).

Names are vLLM's and those of Triton's vLLM backend; other systems' spellings are aliases. `make docs`
writes docs/request_fields.md and the names and ranges of the C++ core from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quire.chat_options import ChatOptions
from quire.errors import InvalidArgument
from quire.field import INT32_MAX, INT64_MAX, INT64_MIN, fields_of, spec
from quire.request_options import RequestOptions
from quire.schema import Names
from quire.table import NOT_YET, Table

if TYPE_CHECKING:
    from quire import _core

__all__ = ["NAMES", "NOT_YET", "RequestOptions", "SamplingParams"]

MAX_LOGPROBS = 20
GREEDY_TEMPERATURE = 1e-5  # below: greedy, as in vLLM
MAX_BAD_WORDS = 128  # sequences of ids, of which a word may have two
MAX_BAD_WORD_IDS = 2048  # in all of them


@dataclass(frozen=True, kw_only=True)
class SamplingParams(Table):
    """What a request asks of sampling, of stopping and of scheduling."""

    n: int = spec(1, minimum=1, maximum=128, aliases=("num_return_sequences",))
    """Sequences that continue the prompt, which is computed once. 1 when greedy (all would be the same)."""
    max_tokens: int | None = spec(
        None,
        minimum=1,
        aliases=(
            "max_new_tokens",
            "max_completion_tokens",
            "request_output_len",
            "sampling_param_max_tokens",
        ),
        newer="max_completion_tokens",
    )
    """Output tokens at most. Not given: the server's default_max_tokens; without that as many as its
    max_output_tokens and the context allow. Of max_tokens and max_completion_tokens the latter counts."""
    min_tokens: int = spec(0, minimum=0, aliases=("min_new_tokens",))
    """End-of-sequence and stop tokens are not sampled before this many output tokens. At most max_tokens."""
    temperature: float = spec(1.0, minimum=0, maximum=2, aliases=("sampling_param_temperature",))
    """Divides the logits before sampling. 0, and all below 0.00001: always the likeliest token (greedy)."""
    top_p: float = spec(
        1.0, minimum=0, maximum=1, exclusive_minimum=True, aliases=("runtime_top_p", "sampling_param_top_p")
    )
    """Sample among the likeliest tokens whose probabilities sum up to this."""
    top_k: int = spec(0, minimum=-1, aliases=("runtime_top_k", "sampling_param_top_k"))
    """Sample among this many of the likeliest tokens. 0 or -1: all."""
    min_p: float = spec(0.0, minimum=0, maximum=1)
    """Sample among tokens at least this many times as probable as the likeliest one. 0: all."""
    presence_penalty: float = spec(0.0, minimum=-2, maximum=2, aliases=("sampling_param_presence_penalty",))
    """Taken off the logits of tokens that the output has."""
    frequency_penalty: float = spec(0.0, minimum=-2, maximum=2, aliases=("sampling_param_frequency_penalty",))
    """Taken off the logits of tokens that the output has, once for each time."""
    repetition_penalty: float = spec(1.0, minimum=0, exclusive_minimum=True)
    """Divides positive logits, and multiplies negative ones, of tokens that the prompt or the output has."""
    seed: int | None = spec(
        None,
        minimum=INT64_MIN,
        maximum=INT64_MAX,
        aliases=("random_seed", "sampling_seed", "sampling_param_seed"),
        unset=(-1,),
    )
    """Same seed, prompt and engine settings: same tokens. Not given, null or -1: drawn for each request. Of n
    sequences the first one draws from it, the others from seeds that follow from it."""
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] = spec(
        (), minimum=-100, maximum=100, max_items=1024
    )
    """Added to the logits of these token ids. {id: bias} or [[id, bias], ...]."""
    allowed_token_ids: Sequence[int] | None = spec(None, minimum=0, min_items=1)
    """Only these token ids are sampled."""
    bad_words: Sequence[str] = spec((), max_items=MAX_BAD_WORDS, max_length=1024)
    """Words that are not generated, as their tokens with and without a leading space: at most 128 sequences
    of tokens, 2048 tokens together. The prompt's tokens do not count."""
    stop: Sequence[str] = spec(
        (),
        max_items=256,
        max_item_bytes=1024,
        max_bytes=16384,
        aliases=("stop_words", "stop_sequences", "stop_strings", "sampling_param_stop"),
    )
    """Generation ends where the text contains one of these strings: at most 256 of them, of 1024 bytes each
    and 16384 bytes together. One that is a special token ends it, too, where skip_special_tokens hides it."""
    stop_token_ids: Sequence[int] = spec((), minimum=0, max_items=240)
    """Generation ends at one of these token ids, which must be in the model's vocabulary. At most 240."""
    ignore_eos: bool = spec(False)
    """Go on past end-of-sequence tokens."""
    include_stop_str_in_output: bool = spec(False, aliases=("no_stop_trim",))
    """The stop string, or the stop token's text, stays at the end of the text."""
    skip_special_tokens: bool = spec(True)
    """Special tokens are left out of the text."""
    detokenize: bool = spec(True)
    """false: token ids only, no text. Stop strings are an error then."""
    logprobs: int | None = spec(
        None,
        minimum=0,
        maximum=MAX_LOGPROBS,
        remark="-1, the whole vocabulary, would be megabytes for each token",
    )
    """Log probabilities of each output token, and of this many of the likeliest ones."""
    prompt_logprobs: int | None = spec(
        None,
        minimum=0,
        maximum=MAX_LOGPROBS,
        remark="-1, the whole vocabulary, would be megabytes for each token",
    )
    """The same of the prompt's tokens, which are then computed even where they are cached."""
    stream_interval: int = spec(1, minimum=1)
    """Tokens that come at once when streaming, except the first and the last ones. More where text must be
    held back."""
    cache_salt: str | None = spec(None, max_length=1024)
    """Cached prefixes are shared only among requests with the same salt."""
    priority: int = spec(0, minimum=-INT32_MAX - 1, stage="schedule")
    """Lower is first. Other than 0 only where model.json says "scheduling_policy": "priority"."""
    deadline_ms: int | None = spec(None, minimum=1, stage="schedule")
    """Milliseconds after its arrival at which the request ends with what it has; an error where that is
    nothing. Refused at once when it cannot be met."""
    truncate_prompt_tokens: int | None = spec(None, minimum=-1, aliases=("truncate",), stage="prompt")
    """Keep only this many tokens of the prompt: the end of its text, after the special tokens that the
    tokenizer adds. -1: as many as fit; 0 is an error. The model generation does not know it."""
    add_special_tokens: bool = spec(True, stage="prompt")
    """The special tokens that the tokenizer puts around a text, such as the one that begins it; never a
    second time before a text that already begins with them. Default: true, but false with messages, whose
    template has them. The model generation does not know it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.truncate_prompt_tokens == 0:
            raise InvalidArgument("truncate_prompt_tokens", "0", "at least 1, or -1 (as many as fit)")
        from quire import _core

        try:
            _core.validate_together(self.to_core())
        except _core.InvalidArgument as error:
            raise InvalidArgument.from_core(error) from None

    def to_core(self, bad_word_ids: Sequence[Sequence[int]] = ()) -> _core.SamplingParams:
        """These params in C++. `bad_word_ids`: bad_words as their tokens (Tokenizer.bad_word_ids)."""
        from quire import _core

        values = {name: getattr(self, name) for name in CORE_FIELDS if name != "bad_words"}
        not_given = {"max_tokens": 0, "allowed_token_ids": (), "cache_salt": ""}
        values |= {name: value for name, value in not_given.items() if values[name] is None}
        return _core.SamplingParams(**values, bad_word_ids=bad_word_ids)


TABLES = (SamplingParams, RequestOptions, ChatOptions)
NAMES = Names({name: field for table in TABLES for name, field in fields_of(table).items()}, NOT_YET)
SAMPLING_FIELDS = tuple(fields_of(SamplingParams))
ENGINE_FIELDS = tuple(name for name, field in fields_of(SamplingParams).items() if field.stage != "prompt")
CORE_FIELDS = tuple(name for name, field in fields_of(SamplingParams).items() if field.stage == "sampling")
OPTION_FIELDS = tuple(fields_of(RequestOptions))
