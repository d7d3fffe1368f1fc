"""What `quire.LLM` returns: one RequestOutput per prompt, in the prompts' order."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CompletionOutput", "RequestOutput"]


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One continuation of a prompt."""

    index: int
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
    outputs: tuple[CompletionOutput, ...]
