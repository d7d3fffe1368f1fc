"""quire.LLM hands every field of SamplingParams to the core."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from quire import LLM, InvalidArgument, SamplingParams, _core


class Recorder:
    """A core that only takes requests."""

    def __init__(self, core: _core.EngineCore) -> None:
        self.config = core.config
        self.added: list[tuple[list[int], _core.SamplingParams, dict[str, Any]]] = []

    def has_unfinished_requests(self) -> bool:
        return bool(self.added)

    def add_request(self, _: int, ids: list[int], params: _core.SamplingParams, **rest: Any) -> None:
        self.added.append((ids, params, rest))


@pytest.fixture
def llm(llama_folder: Callable[..., Path]) -> LLM:
    folder = str(llama_folder())
    return LLM(folder, dtype="float32", max_model_len=64, num_threads=1)


def test_every_field_reaches_the_core(llm: LLM) -> None:
    """Fields of sampling, of scheduling, and words as ids."""
    recorder = Recorder(llm._core)
    llm._core = recorder  # type: ignore[assignment]
    params = SamplingParams(
        n=3,
        min_p=0.125,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.25,
        logit_bias={5: 1.5},
        allowed_token_ids=[5, 6],
        bad_words=["ab", " c"],
        logprobs=2,
        prompt_logprobs=1,
        stream_interval=4,
        cache_salt="s",
        priority=-2,
        deadline_ms=5000,
    )
    before = time.monotonic_ns()
    llm.add_request([1, 2], params)
    [(ids, core, rest)] = recorder.added
    assert ids == [1, 2]
    for name in params.given.keys() - {"bad_words", "logit_bias", "priority", "deadline_ms"}:
        value = params.given[name]
        assert getattr(core, name) == (list(value) if isinstance(value, tuple) else value)
    assert core.logit_bias == [(5, 1.5)]
    encode = llm._engine.tokenizer.encode
    assert core.bad_word_ids == [encode("ab"), encode(" ab"), encode("c"), encode(" c")]
    assert rest["priority"] == -2
    assert before <= rest["arrival_ns"] <= time.monotonic_ns()
    assert rest["deadline_ns"] == rest["arrival_ns"] + 5_000_000_000
    llm.add_request([1, 2])
    assert recorder.added[1][2]["deadline_ns"] == 0
    assert recorder.added[1][1].bad_word_ids == []


def test_words_that_are_too_many(llm: LLM) -> None:
    """Are refused before anything runs."""
    with pytest.raises(InvalidArgument, match=r"^prompts\[0\]: bad_words: got 130 sequences of tokens; "):
        llm.generate("a", SamplingParams(bad_words=[f"w{i}" for i in range(65)]))
    assert llm.stats().num_waiting == 0
