"""Biases, bad words and allowed ids on the GPU: the ids that the CPU draws, in every type and vocabulary."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from draw_reference import check_draws
from quire import ops
from sampling_checks import POISON, random_logits, token_masks
from test_sample_adjustments import EditsCase, all_but, ragged
from test_sample_fields import as_counts, as_ints, penalties, settings
from test_sample_fields_gpu import DTYPES, on_gpu, padded

pytestmark = pytest.mark.gpu

NUM_ROWS = 48


@cache
def edits_case(vocab_size: int, dtype: torch.dtype) -> EditsCase:
    """Not to be changed: large ones take seconds to make."""
    return EditsCase(NUM_ROWS, vocab_size, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 31, 333, 4096, 32000, 128256])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.0, 0, 1.0, 0.0),
        (1.0, 0, 1.0, 0.0),
        (1.0, 0, 1.0, 0.05),
        (0.8, 20, 0.9, 0.0),
        (1.0, 0, 0.9, 0.01),
        (1.5, 0, 0.95, 0.0),
        (1.0, 3000, 0.9, 0.0),
    ],
)
def test_edits_agree_with_the_cpu(
    temperature: float, top_k: int, top_p: float, min_p: float, vocab_size: int, dtype: torch.dtype
) -> None:
    """The ids of logits that numpy has adjusted, as the CPU draws them, but for a draw that rounding decides;
    what is drawn is counted; bitwise the same without alignment, alone, and again."""
    case = edits_case(vocab_size, dtype)
    given = settings(NUM_ROWS, temperature=temperature, top_k=top_k, top_p=top_p)
    given["min_p"] = torch.full((NUM_ROWS,), min_p)
    expected = ops.sample(case.adjusted, **given)
    arguments = on_gpu({**given, **case.arguments})
    logits = case.logits.cuda()
    counts = as_counts(case.table).cuda()
    ids = ops.sample(logits, **arguments, token_counts=counts).cpu()
    check_draws(ids, expected, case.adjusted, given)
    assert torch.equal(logits.cpu(), case.logits)
    table = case.table.clone()
    for j, row in enumerate(case.arguments["sample_rows"].tolist()):
        table[row, ids[j]] += case.has_penalties[j]
    assert torch.equal(as_ints(counts.cpu()), table)

    again = as_counts(case.table).cuda()
    assert torch.equal(ops.sample(padded(case.logits, 3), **arguments, token_counts=again).cpu(), ids)
    for j in (0, 1, 6, 16):
        alone = {name: tensor[j : j + 1] for name, tensor in arguments.items()}
        alone |= {name: arguments[name] for name in ("token_masks", "bias_ids", "biases")}
        alone["bias_offsets"] = arguments["bias_offsets"][j : j + 2].clone()
        again = as_counts(case.table).cuda()
        assert ops.sample(logits[j : j + 1], **alone, token_counts=again).item() == ids[j]


@pytest.mark.parametrize("vocab_size", [333, 128256])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 40, 0.9), (1.5, 0, 0.9)]
)
def test_neutral_rows_are_as_before(temperature: float, top_k: int, top_p: float, vocab_size: int) -> None:
    """Rows without adjustments, in their build, get the ids of the build that does not, bitwise."""
    n = 64
    logits = random_logits(n, vocab_size, scale=2).bfloat16().cuda()
    plain = on_gpu(settings(n, temperature=temperature, top_k=top_k, top_p=top_p))
    rows = torch.arange(n, dtype=torch.int32)
    biased = [[7, 11] if j % 2 else [] for j in range(n)]
    fields = {
        **penalties(n, 1, 0, 0),
        "token_counts": as_counts(torch.full((n, vocab_size), POISON)),
        "sample_rows": rows,
        "mask_rows": torch.where(rows % 2 == 1, rows, -1).to(torch.int32),
        "token_masks": token_masks({j: all_but([7, 11], vocab_size) for j in range(1, n, 2)}, n, vocab_size),
        "bias_offsets": ragged(biased),
        "bias_ids": torch.tensor([i for own in biased for i in own], dtype=torch.int32),
        "biases": torch.full((n,), 5.0),
    }
    ids = ops.sample(logits, **plain, **on_gpu(fields))
    assert torch.equal(ids[::2], ops.sample(logits, **plain)[::2])
    assert set(ids[1::2].tolist()) <= {7, 11}


def test_nothing_left() -> None:
    """-1 where masks and biases leave no id; the neighbour gets its own."""
    logits = random_logits(2, 100)
    given = {
        **settings(2, temperature=0),
        "mask_rows": torch.tensor([0, 1], dtype=torch.int32),
        "token_masks": token_masks({0: all_but([6], 100), 1: all_but([5, 6], 100)}, 2, 100),
        "bias_offsets": torch.tensor([0, 1, 1], dtype=torch.int32),
        "bias_ids": torch.tensor([6], dtype=torch.int32),
        "biases": torch.tensor([-math.inf]),
    }
    ids = ops.sample(logits.cuda(), **on_gpu(given)).tolist()
    assert ids == [-1, 5 if logits[1, 5] > logits[1, 6] else 6]


def test_arrays_that_belong_together() -> None:
    """One of them alone is refused."""
    logits, given = random_logits(2, 100).cuda(), on_gpu(settings(2))
    rows = torch.zeros(3, dtype=torch.int32, device="cuda")
    with pytest.raises(ValueError, match="mask_rows"):
        ops.sample(logits, **given, mask_rows=rows)
    with pytest.raises(ValueError, match="bias_offsets"):
        ops.sample(logits, **given, bias_offsets=rows)
