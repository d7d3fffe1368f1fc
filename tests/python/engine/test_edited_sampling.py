"""Penalties, min_p, biases, bad words and allowed ids through `quire.LLM` on the CPU: every id is the one
that vLLM's semantics, in plain numpy, give for the model's logits."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edits_reference import Fields
from quire import LLM, SamplingParams, _core, ops
from random_llama import VOCAB_SIZE, with_batches_out
from torch import Tensor

NUM_TOKENS = 24
COMMON = list(range(40, 60))

# Each field alone, then all of them in combinations.
CASES: list[dict[str, Any]] = [
    {},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"presence_penalty": -1.0, "frequency_penalty": -0.3},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7},
    {"logit_bias": {5: 30.0, 6: 29.5, 300 - 1: -100.0}},
    {"allowed_token_ids": COMMON},
    {"allowed_token_ids": [*COMMON, 299, 0], "presence_penalty": 0.9},
    {"min_p": 0.2},
    {"min_p": 0.05, "top_p": 0.9, "top_k": 50},
    {
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.2,
        "logit_bias": dict.fromkeys(COMMON, 2.0),
        "allowed_token_ids": list(range(30, 200)),
        "min_p": 0.02,
        "top_k": 40,
        "min_tokens": 10,
    },
    {"allowed_token_ids": COMMON[:2], "repetition_penalty": 2.0, "logit_bias": {COMMON[0]: 1.0}},
]


class Judge:
    """Stands between the runner and its sampler, and samples each row again from logits that numpy edited."""

    def __init__(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner: Any = llm._engine.runner
        self.first_id = llm._next_id
        self.sample = self.runner._sample
        self.prompts: list[list[int]] = []
        self.fields: list[Fields] = []
        self.min_p: list[float] = []
        self.outputs: list[list[int]] = []
        self.num_edited = self.num_changed = self.num_resumed = 0
        monkeypatch.setattr(self.runner, "_sample", self.judge)

    def expect(self, prompts: list[list[int]], params: list[SamplingParams], words: list[Any]) -> None:
        self.prompts, self.outputs = prompts, [[] for _ in prompts]
        for item, ids in zip(params, words, strict=True):
            self.fields.append(Fields.of(item, ids))
            self.min_p.append(item.min_p)

    def judge(self, batch: _core.Batch, logits: Tensor, out: Tensor) -> None:
        before = logits.clone()
        self.sample(batch, logits, out)
        assert torch.equal(logits, before), "the model's logits stay as they are"
        self.num_edited += batch.edits is not None
        for j, req_idx in enumerate(batch.sample_req_idx):
            index = int(batch.request_ids[req_idx]) - self.first_id
            output, own = self.outputs[index], self.fields[index]
            if batch.edits is None:
                assert (own, self.min_p[index]) == (Fields(), 0)
            assert batch.output_idx[j] == len(output)
            masked = batch.mask_ids[slice(*batch.mask_offsets[j : j + 2])].tolist()
            row = before[j].float().numpy()
            edited = own.edit(row, self.prompts[index], output, masked)
            part = slice(j, j + 1)
            expected = ops.sample(
                torch.from_numpy(edited)[None],
                temperature=torch.from_numpy(batch.temperature[part]),
                top_k=torch.from_numpy(batch.top_k[part]),
                top_p=torch.from_numpy(batch.top_p[part]),
                seed=torch.from_numpy(batch.seed[part]),
                output_idx=torch.from_numpy(batch.output_idx[part]),
                min_p=torch.tensor([self.min_p[index]]),
            )
            assert int(out[j]) == int(expected), f"request {index}, token {len(output)}"
            assert int(out[j]) not in own.banned(output)
            self.num_changed += own != Fields() and int(np.argmax(row)) != int(np.argmax(edited))
            output.append(int(out[j]))


def make_prompts(count: int) -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(256) for _ in range(rng.choice([1, 7, 16, 33]))] for _ in range(count)]


def make_params() -> list[SamplingParams]:
    """Every case greedy, and drawn."""
    params = []
    for seed, case in enumerate(CASES):
        for temperature in (0.0, 1.1):
            values = {"temperature": temperature, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": seed}
            params.append(SamplingParams(**values | case))
    return params


MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunked": {"max_num_batched_tokens": 24, "max_num_seqs": 8},
    "preemption": {"max_model_len": 128, "num_gpu_blocks_override": 20, "watermark": 0.0},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("batches_out", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_every_id_is_that_of_the_reference(
    llama_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, mode: str, batches_out: int
) -> None:
    """Alone and combined, greedy and drawn, beside requests without; resumed, and two batches out."""
    llm = LLM(str(llama_folder()), **{"dtype": "float32", "max_model_len": 256} | MODES[mode])
    llm._core = with_batches_out(llm, batches_out)
    monkeypatch.setattr(llm._engine.runner, "max_batches_out", batches_out)
    params = make_params()
    prompts = make_prompts(len(params))
    judge = Judge(llm, monkeypatch)
    judge.expect(prompts, params, [()] * len(params))
    outputs = llm.generate(prompts, params)
    assert [list(output.outputs[0].token_ids) for output in outputs] == [
        o[:NUM_TOKENS] for o in judge.outputs
    ]
    assert judge.num_edited > 0
    assert judge.num_changed > NUM_TOKENS, "the edits decide"
    if mode == "preemption":
        assert llm.stats().num_preemptions > 0


@pytest.mark.parametrize("mode", ["whole", "preemption"])
@pytest.mark.parametrize("batches_out", [1, 2])
def test_bad_words(
    llama_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, batches_out: int, mode: str
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
    llm._core = with_batches_out(llm, batches_out)
    monkeypatch.setattr(llm._engine.runner, "max_batches_out", batches_out)
    judge = Judge(llm, monkeypatch)
    params = [greedy] * len(prompts)
    judge.expect(prompts, params, words)
    to_core = SamplingParams.to_core
    waiting = iter(words)

    # As ids: random models answer with bytes that are no text.
    def with_words(self: SamplingParams, *args: Any, **kwargs: Any) -> _core.SamplingParams:
        core = to_core(self, *args, **kwargs)
        values = {name: getattr(core, name) for name in vars(_core.SamplingParams) if name[0] != "_"}
        return _core.SamplingParams(**values | {"bad_word_ids": next(waiting)})

    monkeypatch.setattr(SamplingParams, "to_core", with_words)
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
    assert runner._edits is None
    llm.generate(make_prompts(3), SamplingParams(min_p=0.3, max_tokens=4))
    assert runner._edits is not None


def test_nothing_left_ends_one_request_alone(llama_folder: Callable[..., Path]) -> None:
    """Its error says why; the others get their answers."""
    llm = LLM(str(llama_folder()), dtype="float32", max_model_len=256)
    bad = SamplingParams(allowed_token_ids=[257], min_tokens=5, max_tokens=9)  # the end, too soon
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
