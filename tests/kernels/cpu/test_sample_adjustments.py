"""Biases, bad words and allowed ids: the ids drawn are those of logits that plain numpy has adjusted."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from adjustments_reference import Fields
from quire import ops
from sampling_checks import POISON, chi_square_in_sigmas, random_logits, reference_probs, token_masks
from test_sample_fields import IN_PROMPT, as_counts, as_ints, penalties, settings
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]


def all_but(ids: list[int], vocab_size: int) -> list[int]:
    return sorted(set(range(vocab_size)) - set(ids))


def ragged(lists: list[list[int]]) -> Tensor:
    return torch.tensor([0, *map(len, lists)]).cumsum(0).to(torch.int32)


class EditsCase:
    """Rows with every combination of adjustments, their arguments, and what numpy makes of their logits."""

    def __init__(self, num_rows: int, vocab_size: int, dtype: torch.dtype, *, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.logits = random_logits(num_rows, vocab_size, scale=2.5, seed=seed).to(dtype)
        self.table = torch.zeros((num_rows + 3, vocab_size), dtype=torch.int32)
        rows = rng.sample(range(num_rows + 3), num_rows)
        masked, biases, fields = {}, [], []
        self.adjusted = torch.empty((num_rows, vocab_size))
        for j in range(num_rows):
            prompt = rng.choices(range(vocab_size), k=vocab_size // 3)
            output = rng.choices(range(vocab_size), k=vocab_size // 4)
            ids = sorted(
                rng.sample(range(vocab_size), min(vocab_size, rng.choice([1, 40, 1 + vocab_size // 2])))
            )
            biased = sorted(rng.sample(range(vocab_size), min(vocab_size, rng.choice([1, 3, 300]))))
            survivor = ids[0]
            values = {i: rng.choice([rng.uniform(-5, 5), -math.inf]) if j % 8 else -3.0 for i in biased}
            if values.get(survivor) == -math.inf:
                values[survivor] = 1.0
            # All 16 combinations, then again; the last one has them all.
            kinds = 15 - j % 16
            ends = rng.sample(range(vocab_size), min(vocab_size // 4, 20)) if kinds & 8 else []
            own = Fields(
                presence_penalty=0.6 if kinds & 1 else 0.0,
                frequency_penalty=0.3 if kinds & 1 else 0.0,
                repetition_penalty=1.3 if kinds & 1 else 1.0,
                logit_bias=values if kinds & 2 else {},
                allowed_token_ids=ids if kinds & 4 else (),
                min_tokens=1 + len(output),
                end_ids=[i for i in ends if i != survivor],
            )
            if kinds & 12:
                masked[rows[j]] = sorted(own.masked(output, vocab_size))
            self.table[rows[j]] = torch.from_numpy(np.bincount(output, minlength=vocab_size))
            self.table[rows[j], prompt] |= IN_PROMPT
            fields.append(own)
            biases.append(own.logit_bias)
            row = self.logits[j].float().numpy()
            self.adjusted[j] = torch.from_numpy(own.adjustment(row, prompt, output))
        self.arguments = {
            "sample_rows": torch.tensor(rows, dtype=torch.int32),
            "repetition_penalty": torch.tensor([f.repetition_penalty for f in fields]),
            "presence_penalty": torch.tensor([f.presence_penalty for f in fields]),
            "frequency_penalty": torch.tensor([f.frequency_penalty for f in fields]),
            "mask_rows": torch.tensor([r if r in masked else -1 for r in rows], dtype=torch.int32),
            "token_masks": token_masks(masked, num_rows + 3, vocab_size),
            "bias_offsets": ragged([list(own) for own in biases]),
            "bias_ids": torch.tensor([i for own in biases for i in own], dtype=torch.int32),
            "biases": torch.tensor([value for own in biases for value in own.values()]),
        }
        self.has_penalties = [f.repetition_penalty != 1 for f in fields]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 31, 32, 333, 5000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (0.8, 20, 0.9, 0.0), (1.3, 0, 0.8, 0.01), (1.0, 0, 1.0, 0.1)],
)
def test_edits(
    temperature: float, top_k: int, top_p: float, min_p: float, vocab_size: int, dtype: torch.dtype
) -> None:
    """The ids of the adjusted logits; what is drawn is counted, in rows with penalties alone."""
    case = EditsCase(48, vocab_size, dtype)
    given = settings(48, temperature=temperature, top_k=top_k, top_p=top_p)
    given["min_p"] = torch.full((48,), min_p)
    counts = as_counts(case.table)
    logits = case.logits.clone()
    expected = ops.sample(case.adjusted, **given)
    ids = ops.sample(logits, **given, **case.arguments, token_counts=counts)
    assert torch.equal(ids, expected)
    assert torch.equal(logits, case.logits), "logits stay as they are, for logprobs"
    for j, row in enumerate(case.arguments["sample_rows"].tolist()):
        case.table[row, ids[j]] += case.has_penalties[j]
    assert torch.equal(as_ints(counts), case.table)


def test_distribution_of_biased_rows() -> None:
    """30,000 draws follow the softmax of the biased logits; an id with -inf never comes."""
    n, logits = 30000, random_logits(300, scale=2)
    bias_ids = torch.arange(0, 300, 3, dtype=torch.int32)
    biases = torch.where(bias_ids % 2 == 0, 1.5, -math.inf)
    ids = ops.sample(
        logits.expand(n, -1),
        **settings(n, temperature=1.2),
        bias_offsets=torch.arange(n + 1, dtype=torch.int32) * len(bias_ids),
        bias_ids=bias_ids.repeat(n),
        biases=biases.repeat(n),
    )
    adjusted = logits.clone()
    adjusted[bias_ids.long()] += biases
    probs = reference_probs(adjusted, 1.2, 0, 1.0)
    assert (probs[ids.long()] > 0).all()
    assert abs(chi_square_in_sigmas(ids, probs)) < 4


def test_rows_without_edits_are_as_before() -> None:
    """No bias, no restriction and neutral penalties change no id beside rows that have them."""
    logits = random_logits(64, 3000, scale=2)
    rows = torch.arange(64, dtype=torch.int32)
    biased = [[7, 11] if j % 2 else [] for j in range(64)]
    given = settings(64)
    ids = ops.sample(
        logits,
        **given,
        **penalties(64, 1, 0, 0),
        token_counts=as_counts(torch.full((64, 3000), POISON)),
        sample_rows=rows,
        mask_rows=torch.where(rows % 2 == 1, rows, -1).to(torch.int32),
        token_masks=token_masks({j: all_but([7, 11], 3000) for j in range(1, 64, 2)}, 64, 3000),
        bias_offsets=ragged(biased),
        bias_ids=torch.tensor([i for own in biased for i in own], dtype=torch.int32),
        biases=torch.full((64,), 5.0),
    )
    assert torch.equal(ids[::2], ops.sample(logits, **given)[::2])
    assert set(ids[1::2].tolist()) == {7, 11}


def test_nothing_left() -> None:
    """A row whose allowed ids are all masked or biased away gets -1; its neighbour its id."""
    logits, out = random_logits(2, 100), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"logits\[0\]: got -inf for every token"):
        ops.sample(
            logits,
            **settings(2, temperature=0),
            mask_rows=torch.tensor([0, 1], dtype=torch.int32),
            token_masks=token_masks({0: all_but([6], 100), 1: all_but([5, 6], 100)}, 2, 100),
            bias_offsets=torch.tensor([0, 1, 1], dtype=torch.int32),
            bias_ids=torch.tensor([6], dtype=torch.int32),
            biases=torch.tensor([-math.inf]),
            out=out,
        )
    assert out.tolist() == [-1, 5 if logits[1, 5] > logits[1, 6] else 6]


def test_wrong_arguments_are_named() -> None:
    """Arrays belong together, and rows are rows of the table."""
    logits, given = random_logits(2, 50), settings(2)
    rows, masks = torch.tensor([0, 3], dtype=torch.int32), token_masks({}, 3, 50)
    with pytest.raises(ValueError, match="token_masks: got None"):
        ops.sample(logits, **given, mask_rows=rows)
    with pytest.raises(ValueError, match=r"mask_rows: got \[0, 3\]; allowed: -1 to 2"):
        ops.sample(logits, **given, mask_rows=rows, token_masks=masks)
    with pytest.raises(ValueError, match=r"token_masks: got .*num_mask_words"):
        ops.sample(logits, **given, mask_rows=rows, token_masks=token_masks({}, 3, 65))
    offsets = torch.tensor([0, 1, 1], dtype=torch.int32)
    with pytest.raises(ValueError, match="bias_ids: got None"):
        ops.sample(logits, **given, bias_offsets=offsets)
    with pytest.raises(ValueError, match=r"biases: got .*float32"):
        ops.sample(logits, **given, bias_offsets=offsets, bias_ids=rows[:1], biases=rows[:1])
