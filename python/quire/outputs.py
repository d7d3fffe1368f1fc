"""What `quire.LLM` returns: generate() one RequestOutput per prompt, in the prompts' order; step() one
StreamOutput per request that moved forward."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from quire.token_logprobs import OutputLogprobs, PromptLogprobs

if TYPE_CHECKING:
    from quire import _core


@dataclass(frozen=True, kw_only=True)
class RequestTiming:
    """Where a sequence's time went, in ms, and what was computed for it. The stages add up to total_ms."""

    tokenize_ms: float  # of all prompts of the call
    queue_ms: float  # until it was first admitted
    prefill_ms: float  # until its first token
    decode_ms: float  # until its end; waiting again after a preemption included, as in prefill_ms
    detokenize_ms: float
    total_ms: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int  # found in the prefix cache
    computed_tokens: int  # each once
    recomputed_tokens: int  # again, after a preemption
    preemptions: int
    waited_steps: Mapping[str, int]  # "rows", "blocks", "token_budget": steps in which these were missing


def make_timing(receipt: _core.RequestTiming | None) -> RequestTiming | None:
    """Finish it: the text is made."""
    return None if receipt is None else RequestTiming(**json.loads(receipt.to_json(time.monotonic_ns())))


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One continuation of a prompt."""

    index: int  # below the request's n
    text: str  # without a stop string unless include_stop_str_in_output
    token_ids: tuple[int, ...]  # the token that ended the sequence included
    finish_reason: str  # "stop", "length", "deadline", or "error": what ended this sequence alone
    stop_reason: str | int | None = None  # the stop string, or the id of stop_token_ids, that ended it
    logprobs: OutputLogprobs | None = None  # a dict of Logprob by id for each token; None: not asked for
    cumulative_logprob: float | None = None  # of all tokens
    receipt: RequestTiming | None = None  # None: not asked for
    error: str = ""  # the reason of "error", and of "deadline" where nothing was generated
    # What it cost: num_prompt_tokens, num_cached_tokens and what else the core's Usage has.
    usage: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A prompt and what the model made of it."""

    request_id: int
    prompt: str | None  # None when token ids were given
    prompt_token_ids: tuple[int, ...]
    num_cached_tokens: int  # prompt tokens whose keys and values were found in the prefix cache
    outputs: tuple[CompletionOutput, ...]  # [n]
    prompt_logprobs: PromptLogprobs | None = None  # of each token; of the first: None


class StreamOutput(NamedTuple):
    """What a step added to one sequence of a request. A tuple: hundreds are made in each step."""

    request_id: int
    text: str  # joined over all steps: the text of CompletionOutput
    token_ids: list[int]
    finish_reason: str  # "" while it goes on; "stop", "length", "deadline", "cancelled" or "error"
    error: str  # the reason of "error", and of "deadline" where nothing was generated
    sequence_index: int = 0  # below the request's n; each sequence has an end of its own
    stop_reason: str | int | None = None
    logprobs: OutputLogprobs | None = None  # of token_ids
    cumulative_logprob: float | None = None  # of all tokens so far
    prompt_logprobs: PromptLogprobs | None = None  # with the first tokens
    receipt: RequestTiming | None = None  # with the end, when it was asked for
    usage: Mapping[str, int] | None = None  # with the end, as CompletionOutput has it
