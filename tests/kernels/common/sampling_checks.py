"""What sampling must do on any device: references, and checks that take a device's `run(logits, **settings)`,
whose ids are on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from quire.ops.sampling import num_mask_words
from torch import Tensor

Run = Callable[..., Tensor]


def random_logits(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


POISON = 0x5555  # in rows of tables that nobody reads


def token_masks(masked: dict[int, list[int]], num_rows: int, vocab_size: int) -> Tensor:
    """The table in which these rows leave out these ids; the others are poisoned."""
    masks = torch.full((num_rows, num_mask_words(vocab_size)), POISON, dtype=torch.int64)
    for row, ids in masked.items():
        bits = torch.ones(32 * masks.size(1), dtype=torch.int64)
        bits[ids] = 0
        masks[row] = (bits.view(-1, 32) << torch.arange(32)).sum(-1)
    return masks.to(torch.uint32).view(torch.int32)


def arguments(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    first_seed: int = 0,
    output_idx: int = 0,
    masked: list[list[int]] | None = None,
) -> dict[str, Tensor]:
    """What a sampler takes beside logits; row j has seed first_seed + j, and does not give masked[j]."""
    n, vocab_size = logits.shape
    given = {
        "temperature": torch.full((n,), float(temperature)),
        "top_k": torch.full((n,), top_k, dtype=torch.int32),
        "top_p": torch.full((n,), top_p),
        "seed": torch.arange(first_seed, first_seed + n),
        "output_idx": torch.full((n,), output_idx, dtype=torch.int32),
    }
    if masked is not None:
        rows = {n - j: ids for j, ids in enumerate(masked) if ids}
        given["mask_rows"] = torch.tensor([n - j if n - j in rows else -1 for j in range(n)]).int()
        given["token_masks"] = token_masks(rows, n + 1, vocab_size)
    return given


def reference_probs(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Probability of each token of one row, 0 outside the set: by sorting everything, in float64."""
    scaled = logits.double() / temperature
    order = torch.sort(scaled, descending=True, stable=True).indices
    if top_k > 0:
        order = order[:top_k]
    probs = scaled[order].softmax(0)
    # float32 is what the kernel is given for top_p
    keep = probs.cumsum(0) - probs < torch.tensor(top_p, dtype=torch.float32).double()
    if top_p >= 1:
        keep[:] = True
    keep[0] = True
    out = torch.zeros(logits.shape[0], dtype=torch.float64)
    out[order[keep]] = probs[keep] / probs[keep].sum()
    return out


def chi_square_in_sigmas(ids: Tensor, probs: Tensor) -> float:
    """How far the chi-square statistic is above its mean; tokens expected less than 5 times make one bin."""
    counts = torch.bincount(ids.long(), minlength=probs.numel()).double()
    expected = probs * ids.numel()
    rare = expected < 5
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    degrees = expected.numel() - 1
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    return (statistic - degrees) / math.sqrt(2 * degrees)


SETTINGS = [
    # temperature, top_k, top_p
    (1.0, 0, 1.0),
    (0.7, 0, 1.0),
    (2.0, 0, 1.0),
    (1.0, 5, 1.0),
    (1.0, 40, 1.0),
    (0.5, 0, 0.9),
    (1.0, 0, 0.5),
    (1.3, 20, 0.8),
    (1.0, 300, 0.95),
]


def check_distribution(run: Run, temperature: float, top_k: int, top_p: float, dtype: torch.dtype) -> None:
    logits = random_logits(400, scale=2).to(dtype)
    ids = run(logits.expand(30000, -1), temperature=temperature, top_k=top_k, top_p=top_p)
    probs = reference_probs(logits, temperature, top_k, top_p)
    assert (probs[ids.long()] > 0).all(), "a token outside the set"
    assert abs(chi_square_in_sigmas(ids, probs)) < 4


def check_sets(run: Run, row: int) -> None:
    logits = random_logits(3000, scale=0.3, seed=row)
    for top_k, top_p in [(1, 1.0), (17, 1.0), (100, 1.0), (50, 0.5), (0, 0.01), (0, 0.03), (80, 0.999)]:
        expected = reference_probs(logits, 1.0, top_k, top_p).nonzero().flatten()
        ids = run(logits.expand(4000, -1), top_k=top_k, top_p=top_p)
        assert torch.equal(ids.unique().long(), expected), f"top_k {top_k} top_p {top_p}"


def check_wide_set(run: Run, num_draws: int, top_k: int, top_p: float) -> None:
    logits = random_logits(3000, scale=0.5)
    probs = reference_probs(logits, 1.0, top_k, top_p)
    assert (probs > 0).sum() > 200
    ids = run(logits.expand(num_draws, -1), top_k=top_k, top_p=top_p)
    assert torch.equal(ids.unique().long(), probs.nonzero().flatten())
    assert abs(chi_square_in_sigmas(ids, probs)) < 4


def check_equal_logits(run: Run) -> None:
    logits = torch.zeros(1000)
    assert sorted(run(logits.expand(500, -1), top_k=7).unique().tolist()) == list(range(7))
    assert sorted(run(logits.expand(500, -1), top_p=0.0095).unique().tolist()) == list(range(10))
    assert run(logits.expand(3000, -1), top_p=0.3005).unique().tolist() == list(range(301))
    logits[[30, 200, 999]] = 1
    assert run(logits[None], temperature=0).tolist() == [30]
    assert run(logits[None], top_k=1).tolist() == [30]
    assert sorted(run(logits.expand(100, -1), top_k=2).unique().tolist()) == [30, 200]
    zeros = torch.tensor([[-1.0, -0.0, 0.0, -0.0]])
    assert run(zeros, temperature=0).tolist() == [1]
    assert run(zeros, top_k=1).tolist() == [1]


def check_tiny_temperature(run: Run, temperature: float) -> None:
    logits = random_logits(20, 500, scale=3)
    for settings in ({}, {"top_p": 0.9}, {"top_k": 400}, {"top_k": 400, "top_p": 0.5}):
        assert torch.equal(run(logits, temperature=temperature, **settings).long(), logits.argmax(-1))


def check_masks(run: Run, logits: Tensor) -> None:
    """`logits`: [4, 300]."""
    before = logits.clone()
    order = logits.float().sort(descending=True, stable=True).indices
    masks = [order[0, :2].tolist(), [], order[2, :1].tolist(), [5, 299]]
    greedy = run(logits, temperature=0, masked=masks)
    assert greedy.tolist()[:3] == [int(order[0, 2]), int(order[1, 0]), int(order[2, 1])]
    for top_k, top_p in [(0, 1.0), (3, 1.0), (0, 0.8), (10, 0.8)]:
        masked = logits[0].float().cpu().clone()
        masked[masks[0]] = -math.inf
        probs = reference_probs(masked, 1.0, top_k, top_p)
        ids = run(logits[:1].expand(2000, -1), top_k=top_k, top_p=top_p, masked=[masks[0]] * 2000)
        assert (probs[ids.long()] > 0).all()
    assert torch.equal(run(logits[1:2], masked=[[]]), run(logits[1:2]))
    assert torch.equal(logits, before)


def check_minus_inf(run: Run, vocab_size: int) -> None:
    last = vocab_size - 1
    logits = torch.full((vocab_size,), -math.inf)
    logits[[7, 100, last]] = torch.tensor([1.0, 2.0, 3.0])
    for top_k, top_p in [(0, 1.0), (2, 1.0), (50, 1.0), (0, 0.99999), (last, 0.99999)]:
        drawn = set(run(logits.expand(500, -1), top_k=top_k, top_p=top_p).tolist())
        assert drawn == ({100, last} if top_k == 2 else {7, 100, last})
