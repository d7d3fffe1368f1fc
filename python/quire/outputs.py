"""What `quire.LLM` returns: generate() one RequestOutput per prompt, in the prompts' order; step() one
StreamOutput per request that moved forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["CompletionOutput", "RequestOutput", "StreamOutput"]


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One continuation of a prompt."""

    index: int  # below the request's n
    text: str  # without a stop string unless include_stop_str_in_output
    token_ids: tuple[int, ...]  # the token that ended the sequence included
    finish_reason: str  # "stop" or "length"


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A prompt and what the model made of it."""

    request_id: int
    prompt: str | None  # None when token ids were given
    prompt_token_ids: tuple[int, ...]
    num_cached_tokens: int  # prompt tokens whose keys and values were found in the prefix cache
    outputs: tuple[CompletionOutput, ...]  # [n]


class StreamOutput(NamedTuple):
    """What a step added to one sequence of a request. A tuple: hundreds are made in each step."""

    request_id: int
    text: str  # joined over all steps: the text of CompletionOutput
    token_ids: list[int]
    finish_reason: str  # "" while it goes on; "stop", "length", "cancelled" or "error"
    error: str  # the reason of finish_reason "error"
    sequence_index: int = 0  # below the request's n; each sequence has an end of its own
