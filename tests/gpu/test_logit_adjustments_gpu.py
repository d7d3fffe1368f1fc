"""Penalties, min_p, biases, bad words and allowed ids through `quire.LLM` on the GPU: every id is the one
that vLLM's semantics, in plain numpy, give for the logits that the GPU computed, alone, one step ahead, and
in steps whose graphs are captured while others run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adjustments_judge import COMMON, NUM_TOKENS, AdjustmentsJudge, Samples, make_params, with_words
from gpu_engines import make_llm, prompts
from llama_models import MODELS
from quire import LLM, SamplingParams, _core
from quire.runner.sampled import Sampled
from test_engine_gpu import ids

pytestmark = pytest.mark.gpu

MODEL = "gqa2-64"
VOCAB_SIZE = MODELS[MODEL].get("vocab_size", 512)
# What is left of a cached prompt may go to another kernel than the whole.
INVARIANT: dict[str, Any] = {"batch_invariant": True, "enable_prefix_caching": False}
BAD_WORDS: list[list[list[int]]] = [[], [[41], [42]], [[i, j] for i in COMMON[:3] for j in COMMON[:6]]]
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "eager": {"enforce_eager": True},
    "chunked": {"max_num_batched_tokens": 40, "max_num_seqs": 8},
    "preemption": {"max_model_len": 128, "num_gpu_blocks_override": 20, "watermark": 0.0},
}


class Judge(AdjustmentsJudge):
    """Between the engine and its runner, one batch in flight."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(llm)
        self.real = self.runner.launch, self.runner.collect
        self.launched: deque[Samples] = deque()
        monkeypatch.setattr(self.runner, "max_batches_in_flight", 1)
        monkeypatch.setattr(self.runner, "launch", self.launch)
        monkeypatch.setattr(self.runner, "collect", self.collect)

    def launch(self, batch: _core.Batch) -> None:
        self.launched.append(Samples(batch))
        self.real[0](batch)

    def collect(self) -> Sampled:
        result: Sampled = self.real[1]()
        logits = self.runner.logits(len(result.ids)).float().cpu().numpy()
        self.judge(self.launched.popleft(), logits, result.ids.tolist(), exactly=False)
        return result


def requests() -> tuple[list[list[int]], list[SamplingParams], list[list[list[int]]]]:
    """Every case greedy and drawn, with bad words of some kind."""
    params = make_params(VOCAB_SIZE)
    words = [BAD_WORDS[index % len(BAD_WORDS)] for index in range(len(params))]
    return prompts(MODEL, 21, len(params), lengths=(1, 7, 16, 33)), params, words


@pytest.mark.parametrize("mode", MODES)
def test_every_id_is_that_of_the_reference(
    folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    """Greedy ones exactly; drawn ones but where rounding decides."""
    assert VOCAB_SIZE > 256
    llm = make_llm(folder(MODEL), **MODES[mode])
    given, params, words = requests()
    with_words(monkeypatch, words)
    judge = Judge(llm, monkeypatch)
    judge.expect(given, params, words)
    assert ids(llm.generate(given, params)) == judge.outputs
    assert judge.num_adjusted > 0
    assert judge.num_changed > NUM_TOKENS, "the adjustments decide"
    if mode == "preemption":
        assert llm.stats().num_preemptions > 0


@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
def test_one_batch_in_flight_or_two(
    folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    enforce_eager: bool,
) -> None:
    """Ids that the host does not know yet are counted all the same, and bad words of several ids wait for
    them: the same answers, alone too."""
    given, params, words = requests()
    settings = INVARIANT | {"enforce_eager": enforce_eager}
    llm = make_llm(folder(MODEL), **settings)
    assert llm._engine.runner.max_batches_in_flight == 2
    with_words(monkeypatch, words)
    two = ids(llm.generate(given, params))
    monkeypatch.undo()
    for index in range(0, len(given), 3):
        with_words(monkeypatch, [words[index]])
        assert ids(llm.generate(given[index], params[index])) == [two[index]]
        monkeypatch.undo()
    monkeypatch.setattr(llm._engine.runner, "max_batches_in_flight", 1)
    with_words(monkeypatch, words)
    assert ids(llm.generate(given, params)) == two
    for answer, own in zip(two, words, strict=True):
        for word in own:
            assert all(answer[i : i + len(word)] != word for i in range(len(answer)))


def test_requests_without_are_as_before(folder: Callable[[str], Path]) -> None:
    """Beside requests with adjustments, and after them, plain ones get their ids. Full steps are
    captured when they are needed first, once, and plain ones stay as they were."""
    given, params, _ = requests()
    llm = make_llm(folder(MODEL), **INVARIANT)
    graphs = llm._engine.runner._graphs  # type: ignore[attr-defined]
    captured = dict(graphs.plain)
    plain = SamplingParams(temperature=0.9, seed=3, max_tokens=NUM_TOKENS, ignore_eos=True)
    expected = ids(llm.generate(given[:4], plain))
    assert graphs.full == {}
    mixed = ids(llm.generate([*given, *given[:4]], [*params, *[plain] * 4]))
    assert mixed[-4:] == expected
    full = dict(graphs.full)
    assert full
    assert ids(llm.generate([*given, *given[:4]], [*params, *[plain] * 4])) == mixed
    assert ids(llm.generate(given[:4], plain)) == expected
    assert graphs.full == full
    assert graphs.plain == captured
