"""Penalties, min_p, biases, bad words and allowed ids through `quire.LLM` on the CPU: every id is the one
that vLLM's semantics, in plain numpy, give for the model's logits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import step_modes
import torch
from adjustments_judge import NUM_TOKENS, AdjustmentsJudge, Samples, make_params, with_words
from quire import LLM, SamplingParams, _core
from random_llama import VOCAB_SIZE, with_batches_in_flight
from torch import Tensor


class Judge(AdjustmentsJudge):
    """Stands between the runner and its sampler."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(llm)
        self.sample = self.runner._sample
        monkeypatch.setattr(self.runner, "_sample", self.sample_and_judge)

    def sample_and_judge(self, batch: _core.Batch, logits: Tensor, out: Tensor) -> None:
        before = logits.clone()
        self.sample(batch, logits, out)
        assert torch.equal(logits, before), "the model's logits stay as they are"
        self.judge(Samples(batch), before.float().numpy(), out.tolist(), exactly=True)


def make_prompts(count: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(256) for _ in range(rng.choice([1, 7, 16, 33]))] for _ in range(count)]


MODES: dict[str, dict[str, Any]] = {
    **{name: step_modes.MODES[name] for name in ("whole", "chunked")},
    "preemption": {"max_model_len": 128, "num_gpu_blocks_override": 20, "watermark": 0.0},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("batches_in_flight", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_every_id_is_that_of_the_reference(
    llama_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, mode: str, batches_in_flight: int
) -> None:
    """Alone and combined, greedy and drawn, beside requests without; resumed, and two batches in flight."""
    llm = LLM(str(llama_folder()), **{"dtype": "float32", "max_model_len": 256} | MODES[mode])
    llm._core = with_batches_in_flight(llm, batches_in_flight)
    monkeypatch.setattr(llm._engine.runner, "max_batches_in_flight", batches_in_flight)
    params = make_params(VOCAB_SIZE)
    prompts = make_prompts(len(params))
    judge = Judge(llm, monkeypatch)
    judge.expect(prompts, params, [()] * len(params))
    outputs = llm.generate(prompts, params)
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        o[:NUM_TOKENS] for o in judge.outputs
    ]
    assert judge.num_adjusted > 0
    assert judge.num_changed > NUM_TOKENS, "the adjustments decide"
    if mode == "preemption":
        assert llm.stats().num_preemptions > 0


@pytest.mark.parametrize("mode", ["whole", "preemption"])
@pytest.mark.parametrize("batches_in_flight", [1, 2])
def test_bad_words(
    llama_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, batches_in_flight: int, mode: str
) -> None:
    """Sequences that the free answer contains do not come, at whatever place: words of one byte, of two, and
    of three, with other requests beside that have none."""
    llm = LLM(str(llama_folder()), **{"dtype": "float32", "max_model_len": 256} | MODES[mode])
    greedy = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    prompts = make_prompts(12)
    free = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, greedy)]
    words: list[list[list[int]]] = []
    for index, answer in enumerate(free):
        texts = [[answer[2 + i : 2 + i + n] for i in (0, 9, 15)] for n in (1, 2, 3)]
        words.append([] if index % 4 == 3 else texts[index % 4])
    llm._core = with_batches_in_flight(llm, batches_in_flight)
    monkeypatch.setattr(llm._engine.runner, "max_batches_in_flight", batches_in_flight)
    judge = Judge(llm, monkeypatch)
    params = [greedy] * len(prompts)
    judge.expect(prompts, params, words)
    with_words(monkeypatch, words)
    answers = [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]
    assert answers == [output[:NUM_TOKENS] for output in judge.outputs]
    for index, answer in enumerate(answers):
        assert (answer == free[index]) == (not words[index])
        for word in words[index]:
            assert all(answer[i : i + len(word)] != word for i in range(len(answer)))
    if mode == "preemption":
        assert llm.stats().num_preemptions > 0


def test_bad_words_as_text() -> None:
    """What the model would say is not said, with or without a leading space."""
    llm = LLM("quire-8m", dtype="float32", num_threads=1, max_model_len=256)
    params = {"temperature": 0, "max_tokens": 32}
    [free] = llm.generate("def fibonacci(n):", SamplingParams(**params))
    word = "fibonacci"
    assert word in free.outputs[0].text
    [without] = llm.generate("def fibonacci(n):", SamplingParams(**params, bad_words=[word]))
    assert " fibonacci" not in without.outputs[0].text


def test_no_edits_no_tables(llama_folder: Callable[..., Path]) -> None:
    """A request that asks for nothing of the kind, or for its neutral values, allocates nothing."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=256)
    runner: Any = llm._engine.runner
    neutral = SamplingParams(
        min_p=0.0, presence_penalty=0.0, frequency_penalty=0, repetition_penalty=1.0, max_tokens=4
    )
    llm.generate(make_prompts(3), neutral)
    assert runner._tables is None
    llm.generate(make_prompts(3), SamplingParams(min_p=0.3, max_tokens=4))
    assert runner._tables is not None


def test_nothing_left_ends_one_request_alone(llama_folder: Callable[..., Path]) -> None:
    """Its error says why; the others get their answers."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=256)
    bad = SamplingParams(allowed_token_ids=[65], bad_words=["bb"], max_tokens=9)  # no second b
    good = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, presence_penalty=1.0)
    ids = [
        llm.add_request(prompt, params) for prompt, params in zip(make_prompts(2), (bad, good), strict=True)
    ]
    ends = {}
    while llm.has_unfinished_requests:
        for output in llm.step():
            if output.finish_reason:
                ends[output.request_id] = (output.finish_reason, output.error)
    assert ends[ids[0]][0] == "error"
    assert "allowed_token_ids" in ends[ids[0]][1]
    assert ends[ids[1]] == ("length", "")


def test_ids_out_of_the_vocabulary(llama_folder: Callable[..., Path]) -> None:
    """Refused before anything runs, with the field named."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=256)
    for name, value in (("allowed_token_ids", [VOCAB_SIZE]), ("logit_bias", {VOCAB_SIZE: 1.0})):
        with pytest.raises(ValueError, match=name):
            llm.generate([[1]], SamplingParams(**{name: value}))
