"""The model that comes with the repository says in our engine what it says in transformers."""

from __future__ import annotations

from typing import Any

import pytest
from quire import LLM, SamplingParams, _core
from quire.model_path import resolve_model
from quire.outputs import RequestOutput
from quire.tokenizer import Tokenizer
from random_llama import with_batches_in_flight
from reference import check_greedy

TEXTS = [
    "def fibonacci(n):",
    "import os\n",
    "class Stack:\n    def push(self, item):",
    "\n",
    "x = [1, 2, 3]\n" * 30,
]


FOLDER = resolve_model("quire-8m")
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)


def embedded(**settings: Any) -> LLM:
    return LLM("quire-8m", dtype="float32", num_threads=1, **{"max_model_len": 512} | settings)


def check(texts: list[str], outputs: list[RequestOutput]) -> None:
    for text, output in zip(texts, outputs, strict=True):
        prompt = tuple(Tokenizer(FOLDER).encode(text))
        assert prompt == output.prompt_token_ids
        check_greedy(FOLDER, prompt, output.outputs[0].token_ids, 48, repr(text[:20]))


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 40, "max_num_seqs": 3}, {"enable_prefix_caching": False}],
    ids=["whole", "chunked", "no-prefix-caching"],
)
def test_greedy_ids_equal_transformers(settings: dict[str, Any]) -> None:
    """All prompts at once, in float32."""
    check(TEXTS, embedded(**settings).generate(TEXTS, GREEDY))


def test_alone_and_again_from_the_prefix_cache() -> None:
    """One request at a time; the second time its blocks are found."""
    llm = embedded()
    check(TEXTS, [llm.generate(text, GREEDY)[0] for text in TEXTS])
    again = [llm.generate(text, GREEDY)[0] for text in TEXTS]
    assert again[-1].num_cached_tokens >= 16
    check(TEXTS, again)


def test_preemption() -> None:
    """A pool too small for all: requests are thrown out, computed again, and say the same."""
    texts = [f"# {number}\n{text}" for number in range(4) for text in TEXTS[:4]]
    llm = embedded(max_model_len=128, num_gpu_blocks_override=20, watermark=0.0)
    check(texts, llm.generate(texts, GREEDY))
    assert llm.stats().num_preemptions > 0


MIXED = [
    GREEDY,
    SamplingParams(temperature=0.8, seed=1, max_tokens=40, stop=["def", "\n\n"]),
    SamplingParams(temperature=1.0, top_p=0.9, seed=2, max_tokens=30, min_tokens=8),
    SamplingParams(temperature=0, max_tokens=3),
    SamplingParams(temperature=1.2, top_k=40, seed=3, max_tokens=60, ignore_eos=True),
]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"max_num_batched_tokens": 40, "max_num_seqs": 3}, marks=pytest.mark.slow),
        {"max_model_len": 128, "num_gpu_blocks_override": 20, "watermark": 0.0},
    ],
    ids=["whole", "chunked", "preemption"],
)
def test_two_batches_in_flight(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """A step scheduled before the ids of the one before are known: the same outputs."""
    texts = [f"# {number}\n{text}" for number in range(3) for text in TEXTS[:4]]
    params = [MIXED[index % len(MIXED)] for index in range(len(texts))]
    one, two = embedded(**settings), embedded(**settings)
    two._core = with_batches_in_flight(two, 2)
    monkeypatch.setattr(two._engine.runner, "max_batches_in_flight", 2)
    is_ahead = []
    launch = two._engine.runner.launch

    def watch(batch: _core.Batch) -> None:
        is_ahead.append((batch.token_ids < 0).any())
        launch(batch)

    monkeypatch.setattr(two._engine.runner, "launch", watch)
    assert one.generate(texts, params) == two.generate(texts, params)
    assert sum(is_ahead) > len(is_ahead) / 2, "most steps go on from ids that are not known"
    if "num_gpu_blocks_override" in settings:
        assert two.stats().num_preemptions > 0
