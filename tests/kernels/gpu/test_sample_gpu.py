"""Sampling on the GPU: against the CPU kernel, exact sets, and chi-square over fixed seeds."""

from __future__ import annotations

import math

import pytest
import sampling_checks
import torch
from draw_reference import check_draws
from quire import ops
from sampling_checks import SETTINGS, arguments, random_logits, reference_probs
from torch import Tensor

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def run(logits: Tensor, **settings: object) -> Tensor:
    """Ids on the CPU; logits on either device, where one row many times is stored once."""
    is_one_row = logits.stride(0) == 0
    rows = logits[:1].cuda().expand_as(logits) if is_one_row else logits.cuda()
    on_gpu = {name: tensor.cuda() for name, tensor in arguments(logits, **settings).items()}
    return ops.sample(rows, **on_gpu).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1000, 32000, 128256])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [*SETTINGS, (1.0, 3000, 1.0), (1.0, 5000, 0.9), (1.0, 0, 0.999), (2.0, 0, 0.95), (0.0, 0, 1.0)],
)
def test_agrees_with_the_cpu(
    temperature: float, top_k: int, top_p: float, vocab_size: int, dtype: torch.dtype
) -> None:
    """The same ids as the CPU kernel, but for a draw that rounding decides."""
    logits = random_logits(64, vocab_size, scale=2.5).to(dtype)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "first_seed": 77}
    given = arguments(logits, **settings)
    check_draws(run(logits, **settings), ops.sample(logits, **given), logits.float(), given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_distribution(temperature: float, top_k: int, top_p: float, dtype: torch.dtype) -> None:
    """30,000 draws with seeds 0, 1, 2, ... follow the exact distribution, and never leave its set."""
    sampling_checks.check_distribution(run, temperature, top_k, top_p, dtype)


@pytest.mark.parametrize("row", range(6))
def test_top_k_and_top_p_sets_are_exact(row: int) -> None:
    """The tokens drawn over many seeds are exactly the set that sorting the whole row gives."""
    sampling_checks.check_sets(run, row)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.2), (0, 0.3), (700, 1.0), (900, 0.7)])
def test_wide_set_is_exact(top_k: int, top_p: float) -> None:
    """The same where hundreds of tokens are left."""
    sampling_checks.check_wide_set(run, 40000, top_k, top_p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("scale", "top_k", "top_p"),
    [
        (0.0, 5000, 1.0),
        (0.01, 5000, 1.0),
        (0.01, 0, 0.1),
        (0.01, 7000, 0.5),
        (2.0, 5000, 1.0),
        (0.01, 9999, 1.0),
    ],
)
def test_flat_rows_and_large_top_k(scale: float, top_k: int, top_p: float, dtype: torch.dtype) -> None:
    """More tokens than are ever sorted: the boundary is exact, ties at it go to the lowest ids."""
    logits = (random_logits(10000) * scale).to(dtype)
    probs = reference_probs(logits, 1.0, top_k, top_p)
    ids = run(logits.expand(3000, -1), top_k=top_k, top_p=top_p).long()
    inside = probs > 0
    # The mass at which top_p ends is a matter of rounding among thousands of equal tokens: 2 ranks are given.
    order = torch.sort(logits.float(), descending=True, stable=True).indices
    inside[order[: int(inside.sum()) + (2 if top_p < 1 else 0)]] = True
    assert inside[ids].all(), "a token outside the set"
    # Drawn over all of the set: its last tenth in rank order is met about as often as its probability says.
    tail = order[: int((probs > 0).sum())][-int((probs > 0).sum()) // 10 :]
    expected = probs[tail].sum().item() * 3000
    actual = torch.isin(ids, tail).sum().item()
    assert abs(actual - expected) < 5 * math.sqrt(expected) + 3


def test_equal_logits_rank_by_id() -> None:
    """Ties at the edge of a set go to the lowest ids, with top_k, with top_p and in the greedy choice."""
    sampling_checks.check_equal_logits(run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 63, 64, 65, 4096, 50257, 128256, 262144])
def test_greedy(vocab_size: int, dtype: torch.dtype) -> None:
    """Temperature 0 is the largest logit, the lowest id among equals, whatever top_k, top_p and seed say."""
    for apart in (0, 3, 8):  # 3: rows that are not aligned
        logits = random_logits(9, vocab_size + apart).to(dtype).cuda()[:, :vocab_size]
        expected = [row.index(max(row)) for row in logits.float().tolist()]
        assert run(logits, temperature=0).tolist() == expected
        assert run(logits, temperature=0, top_k=3, top_p=0.5, first_seed=99).tolist() == expected


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    """A temperature near zero neither overflows nor yields anything but the largest logit."""
    sampling_checks.check_tiny_temperature(run, temperature)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [*SETTINGS, (1.0, 3000, 0.9), (30.0, 0, 0.9), (1.0, 0, 0.97)]
)
def test_batch_mates_change_nothing(temperature: float, top_k: int, top_p: float) -> None:
    """A row's token depends on its logits, seed and output_idx only, and repeats."""
    logits = random_logits(64, 30000, scale=2).bfloat16().cuda()
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    together = run(logits, first_seed=10, **settings)
    for _ in range(3):
        assert torch.equal(run(logits, first_seed=10, **settings), together)
    alone = torch.cat([run(logits[j : j + 1], first_seed=10 + j, **settings) for j in range(64)])
    assert torch.equal(alone, together)
    assert not torch.equal(run(logits, first_seed=1000, **settings), together)
    assert not torch.equal(run(logits, first_seed=10, output_idx=1, **settings), together)


def test_mixed_settings_in_one_batch() -> None:
    """Greedy rows, free rows and rows with top_k and top_p side by side equal the same rows alone."""
    logits = random_logits(len(SETTINGS) + 1, 5000, scale=2).cuda()
    rows = [(0.0, 0, 1.0), *SETTINGS]
    given = {name: tensor.cuda() for name, tensor in arguments(logits).items()}
    given["temperature"] = torch.tensor([r[0] for r in rows], device="cuda")
    given["top_k"] = torch.tensor([r[1] for r in rows], dtype=torch.int32, device="cuda")
    given["top_p"] = torch.tensor([r[2] for r in rows], device="cuda")
    together = ops.sample(logits, **given).tolist()
    alone = [
        int(run(logits[j : j + 1], temperature=t, top_k=k, top_p=p, first_seed=j)[0])
        for j, (t, k, p) in enumerate(rows)
    ]
    assert together == alone


def test_large_seeds() -> None:
    """All 64 bits of a seed count, as on the CPU."""
    logits = random_logits(1000)[None]
    for seed in (0, -1, 2**32, 2**63 - 1, -(2**63), 1 << 40):
        given = arguments(logits)
        given["seed"] = torch.tensor([seed])
        on_gpu = {name: tensor.cuda() for name, tensor in given.items()}
        assert ops.sample(logits.cuda(), **on_gpu).tolist() == ops.sample(logits, **given).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks(dtype: torch.dtype) -> None:
    """Masked ids are never drawn, the logits stay as they are."""
    sampling_checks.check_masks(run, random_logits(4, 300, scale=3).to(dtype).cuda())


def test_minus_inf_is_never_drawn() -> None:
    """Logits of -inf have no probability, even where top_k asks for more tokens than there are."""
    sampling_checks.check_minus_inf(run, 5000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.9)]
)
def test_bad_row_gets_minus_one(temperature: float, top_k: int, top_p: float, dtype: torch.dtype) -> None:
    """NaN, inf, nothing left, a bad temperature: -1 in that row, the other rows are sampled all the same."""
    settings = {"top_k": top_k, "top_p": top_p}
    good = run(random_logits(3, 100).to(dtype), temperature=temperature, **settings).tolist()
    for column in (0, 13, 99):
        for value in (math.nan, math.inf, -math.inf):
            logits = random_logits(3, 100).to(dtype)
            logits[1, column] = value
            if value == -math.inf:
                logits[1] = value
            out = run(logits, temperature=temperature, **settings).tolist()
            assert out == [good[0], -1, good[2]]
    all_nan = torch.full((3, 128256), math.nan, dtype=dtype, device="cuda")
    assert run(all_nan, temperature=temperature, **settings).tolist() == [-1, -1, -1]
    for bad in (-1.0, math.nan):
        assert run(random_logits(1, 100).to(dtype), temperature=bad, **settings).tolist() == [-1]


def test_absurd_settings_stay_in_range() -> None:
    """top_p of 0, below 0 or NaN, infinite temperature, the largest top_k: an id of the vocabulary."""
    logits = random_logits(1, 5000)
    for top_p in (0.0, -1.0, math.nan, 1e-30):
        assert 0 <= int(run(logits, top_p=top_p)[0]) < 5000
    assert 0 <= int(run(logits, temperature=math.inf, top_p=0.5)[0]) < 5000
    assert 0 <= int(run(logits, top_k=2**31 - 1, top_p=0.5)[0]) < 5000
    assert run(logits, top_p=0.0).tolist() == logits.argmax(-1).tolist()


def test_graph_capture() -> None:
    """Captured once, replayed on other logits and settings."""
    first, second = random_logits(8, 20000, seed=1).cuda(), random_logits(8, 20000, seed=2).cuda()
    given = {name: tensor.cuda() for name, tensor in arguments(first, temperature=0.0).items()}
    logits, out = first.clone(), torch.empty(8, dtype=torch.int32, device="cuda")
    ops.sample(logits, **given, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.sample(logits, **given, out=out)
    logits.copy_(second)
    given["temperature"].fill_(0.8)
    given["top_p"].fill_(0.9)
    graph.replay()
    assert torch.equal(out.cpu(), run(second, temperature=0.8, top_p=0.9))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), *SETTINGS, (1.0, 3000, 0.9)])
def test_last_token_ids(temperature: float, top_k: int, top_p: float) -> None:
    """Each id also lands in its row's entry, 0 in place of -1; padding rows share the last entry."""
    logits = random_logits(6, 5000, scale=2).cuda()
    logits[2, 17] = math.nan
    given = arguments(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    on_gpu = {name: tensor.cuda() for name, tensor in given.items()}
    rows = torch.tensor([4, 0, 7, 2, 9, 9], dtype=torch.int32, device="cuda")
    last = torch.full((10,), -9, dtype=torch.int32, device="cuda")
    out = ops.sample(logits, **on_gpu, sample_rows=rows, last_token_ids=last).tolist()
    assert out == ops.sample(logits, **on_gpu).tolist()
    assert out[2] == -1
    assert last[9].item() in (out[4], out[5])
    assert last[:9].tolist() == [out[1], -9, out[3], -9, out[0], -9, -9, 0, -9]


def test_no_rows_and_refused_sizes() -> None:
    """Nothing to sample is fine; a vocabulary that does not fit is named."""
    assert run(torch.zeros((0, 10))).shape == (0,)
    with pytest.raises(ValueError, match=r"vocab_size: got 900000; allowed: 1 to "):
        run(torch.zeros((1, 900000)))
