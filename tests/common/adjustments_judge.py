"""Judges what an engine samples for requests with penalties, biases and the like: every id is the one that
vLLM's semantics, in plain numpy, give for the logits that the engine computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from adjustments_reference import Fields
from draw_reference import check_draws
from numpy.typing import NDArray
from quire import LLM, SamplingParams, _core, ops

NUM_TOKENS = 24
COMMON = list(range(40, 60))


def cases(vocab_size: int) -> list[dict[str, Any]]:
    """Each field alone, then in combinations."""
    last = vocab_size - 1
    return [
        {},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"presence_penalty": -1.0, "frequency_penalty": -0.3},
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.7, "frequency_penalty": -0.3},
        {"logit_bias": {5: 30.0, 6: 29.5, last: -100.0}},
        {"allowed_token_ids": COMMON},
        {"allowed_token_ids": [*COMMON, last, 0], "presence_penalty": 0.9},
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


def make_params(vocab_size: int) -> list[SamplingParams]:
    """Every case greedy, and drawn."""
    params = []
    for seed, case in enumerate(cases(vocab_size)):
        for temperature in (0.0, 1.1):
            values = {"temperature": temperature, "max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": seed}
            params.append(SamplingParams(**values | case))
    return params


def with_words(monkeypatch: pytest.MonkeyPatch, words: Sequence[Sequence[Sequence[int]]]) -> None:
    """The next requests get these bad words, as ids: random models answer with bytes that are no text."""
    to_core = SamplingParams.to_core
    waiting = iter(words)

    def make(self: SamplingParams, *args: Any, **kwargs: Any) -> _core.SamplingParams:
        core = to_core(self, *args, **kwargs)
        values = {name: getattr(core, name) for name in vars(_core.SamplingParams) if name[0] != "_"}
        return _core.SamplingParams(**values | {"bad_word_ids": next(waiting)})

    monkeypatch.setattr(SamplingParams, "to_core", make)


class Samples:
    """What a batch says of its samples, copied: the core writes over it."""

    def __init__(self, batch: _core.Batch) -> None:
        names = ("temperature", "top_k", "top_p", "seed", "output_idx")
        self.request_ids = np.repeat(batch.request_ids, np.diff(batch.sample_offsets)).tolist()
        self.arrays = {name: torch.from_numpy(getattr(batch, name).copy()) for name in names}
        self.has_masks = batch.has_masks
        self.has_adjustments = batch.has_adjustments


class AdjustmentsJudge:
    """Knows what requests ask for and what they were given. Sits between an engine and what samples."""

    def __init__(self, llm: LLM) -> None:
        self.runner: Any = llm._engine.runner
        self.first_id = next(llm._ids) + 1
        self.eos_ids = llm._core.config.eos_token_ids
        self.outputs: list[list[int]] = []
        self.num_adjusted = 0  # batches
        self.num_changed = 0  # ids that are not the likeliest ones of the model

    def expect(
        self,
        prompts: list[list[int]],
        params: list[SamplingParams],
        words: Sequence[Sequence[Sequence[int]]],
    ) -> None:
        """The next requests of the engine."""
        self.prompts, self.outputs = prompts, [[] for _ in prompts]
        self.fields = [Fields.of(item, own, self.eos_ids) for item, own in zip(params, words, strict=True)]
        self.min_p = [item.min_p for item in params]

    def judge(self, samples: Samples, logits: NDArray[np.float32], ids: list[int], *, exactly: bool) -> None:
        """The ids a batch gave, for the logits of its samples: exactly, or but where rounding decides."""
        self.num_adjusted += samples.has_adjustments or samples.has_masks
        for j, (request_id, token) in enumerate(zip(samples.request_ids, ids, strict=True)):
            index = request_id - self.first_id
            output, own = self.outputs[index], self.fields[index]
            what = f"request {index}, token {len(output)}"
            if not samples.has_adjustments:
                assert (own.changes_logits, self.min_p[index]) == (False, 0), what
            if not samples.has_masks:
                assert not own.masked(output, len(logits[j])), what
            assert samples.arrays["output_idx"][j] == len(output), what
            adjusted = own.adjustment(logits[j], self.prompts[index], output)
            assert adjusted[token] > -np.inf, what
            assert token not in own.banned(output), what
            arguments = {name: array[j : j + 1] for name, array in samples.arrays.items()}
            arguments["min_p"] = torch.tensor([self.min_p[index]])
            rows = torch.from_numpy(adjusted)[None]
            expected = ops.sample(rows, **arguments)
            if exactly:
                assert token == int(expected), what
            check_draws(torch.tensor([token]), expected, rows, arguments)
            self.num_changed += own != Fields() and int(np.argmax(logits[j])) != int(np.argmax(adjusted))
            output.append(token)
