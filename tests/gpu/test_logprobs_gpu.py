"""Logprobs of the engine on the GPU: near a float32 Llama in plain torch, the same bits where bits are
promised, and no business of those who did not ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpu_engines import make_llm, prompts
from llama_models import MODELS
from llama_reference import reference
from quire import LLM, SamplingParams
from quire.outputs import RequestOutput

pytestmark = pytest.mark.gpu

# In standard deviations of the logits. Seen with the CPU engine in bfloat16: at most 0.09, 0.015 on average.
LARGEST_ERROR, MEAN_ERROR = 0.2, 0.03
NUM_TOKENS = 24
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "eager": {"enforce_eager": True},
    "chunked": {"max_num_batched_tokens": 40, "max_num_seqs": 8},
    "preemption": {"max_model_len": 384, "num_gpu_blocks_override": 26, "watermark": 0.0},
}


def make_params(index: int, **settings: Any) -> SamplingParams:
    """Each request asks for something else; some for nothing."""
    values: dict[str, Any] = {
        "temperature": (0, 1.0)[index % 2],
        "seed": index,
        "max_tokens": NUM_TOKENS,
        "ignore_eos": True,
        "logprobs": (5, None, 0, 20)[index % 4],
        "prompt_logprobs": (3, None, 20, None, 0)[index % 5],
    }
    return SamplingParams(**values | settings)


def errors(folder: Path, output: RequestOutput, params: SamplingParams, what: str) -> list[float]:
    """Of every logprob, in standard deviations; checks what belongs where."""
    completion = output.outputs[0]
    tokens = [*output.prompt_token_ids, *completion.token_ids]
    logits = reference(folder).logits(tokens)
    expected = logits.double().log_softmax(-1)
    places: list[Any] = [None] * len(tokens)
    first = len(output.prompt_token_ids)
    if params.prompt_logprobs is not None:
        assert output.prompt_logprobs is not None
        places[:first] = output.prompt_logprobs
        assert [place is None for place in places[:first]] == [True] + [False] * (first - 1), what
    if params.logprobs is not None:
        assert completion.logprobs is not None
        places[first:] = completion.logprobs
        assert len(places) == len(tokens), what
    found = []
    for at, place in enumerate(places):
        if place is None:
            continue
        num_top = params.prompt_logprobs if at < first else params.logprobs
        assert num_top is not None
        assert next(iter(place)) == tokens[at], what
        ranks = sorted(entry.rank for entry in place.values())
        assert ranks[:num_top] == list(range(1, num_top + 1)), what
        deviation = logits[at - 1].std().item()
        for token, entry in place.items():
            found.append(abs(entry.logprob - expected[at - 1, token].item()) / deviation)
    return found


@pytest.mark.parametrize(
    ("model", "mode"),
    [(model, "whole") for model in MODELS] + [("gqa2-64", mode) for mode in MODES if mode != "whole"],
)
def test_near_the_reference(folder: Callable[[str], Path], model: str, mode: str) -> None:
    """Of sampled tokens, the likeliest and prompts, among requests that ask for none. A prompt of 300 tokens
    goes through the head in several pieces."""
    llm = make_llm(folder(model), **MODES[mode])
    given = prompts(model, 21, 22)
    params = [make_params(index) for index in range(len(given))]
    found = []
    for index, output in enumerate(llm.generate(given, params)):
        what = f"{model}, {mode}, prompt {index}"
        found += errors(folder(model), output, params[index], what)
    assert max(found) <= LARGEST_ERROR
    assert sum(found) / len(found) <= MEAN_ERROR
    if mode == "preemption":
        assert llm.stats().num_preemptions > 0


def outputs_of(llm: LLM, given: list[list[int]], params: list[SamplingParams]) -> list[Any]:
    return [
        (output.outputs[0].token_ids, output.outputs[0].logprobs, output.prompt_logprobs)
        for output in llm.generate(given, params)
    ]


@pytest.mark.parametrize("batches_in_flight", [1, 2])
@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
def test_batch_mates_change_nothing(
    folder: Callable[[str], Path], enforce_eager: bool, batches_in_flight: int
) -> None:
    """batch_invariant: the same numbers alone and among others, with graphs or without, with one
    batch in flight or two."""
    model = "gqa4-128-tied-linear-rope"
    given = prompts(model, 22, 6, lengths=(1, 17, 64, 130, 300, 33))
    params = [make_params(index, logprobs=4, prompt_logprobs=2) for index in range(len(given))]
    alone = make_llm(folder(model), batch_invariant=True)
    expected = [outputs_of(alone, [p], [each])[0] for p, each in zip(given, params, strict=True)]
    llm = make_llm(folder(model), batch_invariant=True, enforce_eager=enforce_eager)
    llm._engine.runner.max_batches_in_flight = batches_in_flight
    mates = prompts(model, 23, 15)
    mates_params = [make_params(index) for index in range(len(mates))]
    answers = outputs_of(llm, mates + given[::-1], mates_params + params[::-1])
    assert expected == answers[len(mates) :][::-1]


def test_nobody_else_notices(folder: Callable[[str], Path]) -> None:
    """The same tokens with logprobs and without; a step whose requests ask for none captures and makes
    nothing, and the graphs of such steps stay."""
    model = "gqa2-64"
    llm = make_llm(folder(model), batch_invariant=True, enable_prefix_caching=False)
    given = prompts(model, 24, 12)
    none = [make_params(index, logprobs=None, prompt_logprobs=None) for index in range(len(given))]
    plain = outputs_of(llm, given, none)
    runner: Any = llm._engine.runner
    assert runner._prompt_logprobs is None
    assert runner._graphs.full == {}
    captured = dict(runner._graphs.plain)
    asked = outputs_of(llm, given, [make_params(index) for index in range(len(given))])
    assert [answer[0] for answer in plain] == [answer[0] for answer in asked]
    assert runner._graphs.plain == captured
    assert len(runner._graphs.full) > 0
