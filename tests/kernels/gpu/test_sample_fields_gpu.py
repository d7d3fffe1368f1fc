"""min_p, penalties and logprobs on the GPU: the same as the CPU's, alone, in batches and in graphs."""

from __future__ import annotations

import math

import pytest
import torch
from draw_reference import check_draws
from quire import ops
from sampling_checks import SETTINGS, random_logits, token_masks
from test_sample_fields import (
    PENALTIES,
    as_counts,
    as_ints,
    check_logprobs,
    logprobs_case,
    logprobs_out,
    penalised,
    penalties,
    random_table,
    requests_tokens,
    settings,
)
from torch import Tensor

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_gpu(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cuda() for name, tensor in given.items()}


def as_cpu_takes(logits: Tensor) -> Tensor:
    """The CPU has no float16."""
    return logits.float() if logits.dtype is torch.float16 else logits


def padded(logits: Tensor, apart: int) -> Tensor:
    """The same logits with rows that many elements further apart: odd numbers take alignment away."""
    out = torch.full((logits.size(0), logits.size(1) + apart), math.nan, dtype=logits.dtype, device="cuda")
    out[:, : logits.size(1)] = logits.cuda()
    return out[:, : logits.size(1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 333, 4096, 128256])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (0.0, 0, 1.0, 0.5),
        (1.0, 0, 1.0, 0.0),
        (0.8, 0, 1.0, 0.05),
        (1.0, 0, 1.0, 1e-6),
        (1.0, 40, 1.0, 0.01),
        (1.0, 0, 0.9, 0.002),
        (1.5, 0, 0.95, 1e-9),
        (1.3, 600, 0.9, 1e-7),
    ],
)
@pytest.mark.parametrize("penalty", PENALTIES[::2], ids=str)
def test_fields_agree_with_the_cpu(
    penalty: tuple[float, float, float],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    vocab_size: int,
    dtype: torch.dtype,
) -> None:
    """The same ids and the same table as the CPU kernel, but for a draw that rounding decides."""
    n = 16
    logits = random_logits(n, vocab_size, scale=2.5).to(dtype)
    table = random_table(n + 5, vocab_size)
    given = {
        **settings(n, temperature=temperature, top_k=top_k, top_p=top_p),
        **penalties(n, *penalty),
        "min_p": torch.full((n,), min_p),
        "sample_rows": torch.randperm(n + 5, generator=torch.Generator().manual_seed(9))[:n].to(torch.int32),
    }
    given["repetition_penalty"][3] = 1
    given["presence_penalty"][3] = given["frequency_penalty"][3] = 0
    rows = given["sample_rows"].long()
    expected = ops.sample(as_cpu_takes(logits), **given, token_counts=as_counts(table))
    counts_on_gpu = as_counts(table).cuda()
    actual = ops.sample(padded(logits, 3), **on_gpu(given), token_counts=counts_on_gpu).cpu()
    adjusted = penalised(logits, table[rows], *penalty)
    adjusted[3] = logits[3].float()
    check_draws(actual, expected, adjusted, given)
    again = as_counts(table).cuda()
    table[rows, actual.long()] += torch.tensor([j != 3 for j in range(n)]).int()
    assert torch.equal(as_ints(counts_on_gpu.cpu()), table), "what is drawn is counted"
    assert torch.equal(ops.sample(logits.cuda(), **on_gpu(given), token_counts=again).cpu(), actual)
    assert torch.equal(as_ints(again.cpu()), as_ints(counts_on_gpu.cpu()))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), *SETTINGS, (1.0, 3000, 0.9)])
def test_neutral_fields_change_nothing(temperature: float, top_k: int, top_p: float) -> None:
    """Bitwise the ids of a call without the fields; the table is neither read nor written."""
    n = 64
    logits = random_logits(n, 30000, scale=2).bfloat16().cuda()
    plain = on_gpu(settings(n, temperature=temperature, top_k=top_k, top_p=top_p))
    neutral = on_gpu(penalties(n, 1, 0, 0))
    table = random_table(n, 30000)
    counts, rows = as_counts(table).cuda(), torch.arange(n, dtype=torch.int32, device="cuda")
    expected = ops.sample(logits, **plain)
    fields = {**neutral, "min_p": torch.zeros(n, device="cuda"), "token_counts": counts, "sample_rows": rows}
    assert torch.equal(ops.sample(logits, **plain, **fields), expected)
    assert torch.equal(as_ints(counts.cpu()), table)
    # A row without a mask in a call with masks takes the usual way, and a mask of nothing likely another.
    own = torch.arange(n, dtype=torch.int32, device="cuda")
    masks = token_masks({j: [int(i)] for j, i in enumerate(logits.float().argmin(-1))}, n, 30000).cuda()
    without = ops.sample(logits, **plain, mask_rows=torch.full_like(own, -1), token_masks=masks)
    assert torch.equal(without, expected)
    masked = ops.sample(logits, **plain, mask_rows=own, token_masks=masks)
    assert (masked != expected).sum() <= 1
    assert torch.equal(ops.sample(padded(logits, 1), **plain), expected)


def test_generation_in_a_graph() -> None:
    """40 replays of one captured step count their own tokens: the same sequences as on the CPU."""
    n, vocab_size = 8, 2000
    logits = random_logits(n, vocab_size, scale=0.5)
    given = {**settings(n), **penalties(n, 1.1, 0.5, 0.3), "sample_rows": torch.arange(n, dtype=torch.int32)}
    given["temperature"][:6] = 0
    given["top_k"][6] = 50
    counts, counts_on_gpu = (
        torch.zeros((n + 1, vocab_size), dtype=torch.uint16, device=d) for d in ("cpu", "cuda")
    )
    given_on_gpu, logits_on_gpu = on_gpu(given), logits.cuda()
    last = torch.full((n + 1,), -9, dtype=torch.int32, device="cuda")
    out = torch.empty(n, dtype=torch.int32, device="cuda")

    def step() -> None:
        ops.sample(logits_on_gpu, **given_on_gpu, token_counts=counts_on_gpu, last_token_ids=last, out=out)

    step()
    counts_on_gpu.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    seen = set()
    for idx in range(40):
        given["output_idx"].fill_(idx)
        given_on_gpu["output_idx"].fill_(idx)
        graph.replay()
        expected = ops.sample(logits, **given, token_counts=counts)
        assert torch.equal(out.cpu(), expected)
        assert torch.equal(last[:n].cpu(), expected)
        seen.add(int(expected[0]))
    assert len(seen) > 20
    assert torch.equal(as_ints(counts_on_gpu.cpu()), as_ints(counts))


@pytest.mark.parametrize("vocab_size", [100, 8192, 20001])
def test_token_counts(vocab_size: int) -> None:
    """As on the CPU; rows that are not asked for stay as they are."""
    given, rows, expected = requests_tokens(vocab_size)
    counts = as_counts(torch.full((7, vocab_size), 0xABCD)).cuda()
    ops.token_counts(counts, **on_gpu(given))
    actual = as_ints(counts.cpu())
    assert torch.equal(actual[rows.long()], expected)
    assert (actual[[row for row in range(7) if row not in rows.tolist()]] == 0xABCD).all()


def test_bad_rows_are_not_counted() -> None:
    """A row that gets -1 leaves its entry of the table alone."""
    table = random_table(3, 500)
    counts = as_counts(table).cuda()
    logits = random_logits(3, 500)
    logits[1, 100] = math.nan
    given = {**settings(3), **penalties(3, 1.2, 0, 0), "sample_rows": torch.arange(3, dtype=torch.int32)}
    ids = ops.sample(logits.cuda(), **on_gpu(given), token_counts=counts).tolist()
    assert ids[1] == -1
    for row in (0, 2):
        table[row, ids[row]] += 1
    assert torch.equal(as_ints(counts.cpu()), table)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 50257, 128256])
def test_logprobs(vocab_size: int, dtype: torch.dtype) -> None:
    """Against sorting and float64; the CPU's ids and ranks; bitwise the same alone and without alignment."""
    logits, token_ids, num_logprobs = logprobs_case(vocab_size, dtype)
    wanted = torch.tensor(num_logprobs, dtype=torch.int32)

    def run(rows: slice, apart: int) -> list[Tensor]:
        poisoned = tuple(tensor[rows].cuda() for tensor in logprobs_out(24))
        out = ops.logprobs(
            padded(logits[rows], apart),
            token_ids=token_ids[rows].cuda(),
            num_logprobs=wanted[rows].cuda(),
            out=poisoned,
        )
        return [tensor.cpu() for tensor in out]

    out = run(slice(None), 0)
    check_logprobs(logits, token_ids, num_logprobs, tuple(out))
    on_cpu = ops.logprobs(
        as_cpu_takes(logits), token_ids=token_ids, num_logprobs=wanted, out=logprobs_out(24)
    )
    assert torch.equal(out[1], on_cpu[1])
    assert torch.equal(out[2], on_cpu[2])
    for other in (run(slice(None), 0), run(slice(None), 3)):
        assert all(torch.equal(a, b) for a, b in zip(out, other, strict=True))
    for row in (0, 1, 3, 9):
        alone = run(slice(row, row + 1), 0)
        assert all(torch.equal(a[row : row + 1], b) for a, b in zip(out, alone, strict=True))


def test_logprobs_of_bad_rows() -> None:
    """A row that cannot be sampled has NaN, 0 and -1; an id outside the vocabulary changes nothing else."""
    logits = random_logits(5, 300)
    logits[0, 7], logits[1, 299], logits[2] = math.nan, math.inf, -math.inf
    out = ops.logprobs(
        logits.cuda(),
        token_ids=torch.tensor([-1, -1, -1, -1, 300], dtype=torch.int32, device="cuda"),
        num_logprobs=torch.full((5,), 2, dtype=torch.int32, device="cuda"),
        out=tuple(tensor.cuda() for tensor in logprobs_out(5)),
    )
    token_logprobs, ranks, top_ids, top_logprobs = (tensor.cpu() for tensor in out)
    assert token_logprobs.isnan().all()
    assert ranks.tolist() == [0] * 5
    assert (top_ids[:3, :2] == -1).all()
    assert top_logprobs[:3, :2].isnan().all()
    assert torch.equal(top_ids[3:, :2], logits[3:].topk(2).indices.int())
