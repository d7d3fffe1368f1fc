"""Sampling: sets against a plain torch reference, distributions by chi-square over fixed seeds."""

from __future__ import annotations

import math
from typing import Any

import _core_parts
import pytest
import sampling_checks
import torch
from draw_reference import ROUNDING, draw_error
from kernel_reference import REFUSED
from quire import ops
from sampling_checks import SETTINGS, arguments, chi_square_in_sigmas, random_logits, reference_probs
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16]


def run(logits: Tensor, **settings: Any) -> Tensor:
    return ops.sample(
        logits,
        **arguments(logits, **settings),
        out=torch.full((logits.size(0),), -7, dtype=torch.int32),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_distribution(temperature: float, top_k: int, top_p: float, dtype: torch.dtype) -> None:
    """30,000 draws with seeds 0, 1, 2, ... follow the exact distribution, and never leave its set."""
    sampling_checks.check_distribution(run, temperature, top_k, top_p, dtype)


def test_distribution_over_output_idx() -> None:
    """One seed, many steps: as good as many seeds."""
    logits = random_logits(50, scale=2)
    n = 20000
    ids = ops.sample(
        logits.expand(n, -1),
        temperature=torch.ones(n),
        top_k=torch.zeros(n, dtype=torch.int32),
        top_p=torch.ones(n),
        seed=torch.full((n,), 1234),
        output_idx=torch.arange(n, dtype=torch.int32),
    )
    assert abs(chi_square_in_sigmas(ids, reference_probs(logits, 1.0, 0, 1.0))) < 4


@pytest.mark.parametrize("row", range(6))
def test_top_k_and_top_p_sets_are_exact(row: int) -> None:
    """The tokens drawn over many seeds are exactly the set that sorting the whole row gives."""
    sampling_checks.check_sets(run, row)


@pytest.mark.parametrize("top_p", [0.2, 0.3])
def test_wide_nucleus_is_exact(top_p: float) -> None:
    """The same where the nucleus is hundreds of tokens wide: past what a first guess gathers."""
    sampling_checks.check_wide_set(run, 20000, 0, top_p)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.999])
def test_nucleus_of_large_vocabulary(top_p: float, scale: float) -> None:
    """Never a token outside the set, for flat and for peaked rows of 50,000."""
    logits = random_logits(50000, scale=scale)
    probs = reference_probs(logits, 1.0, 0, top_p)
    ids = run(logits.expand(200, -1), top_p=top_p)
    assert (probs[ids.long()] > 0).all()
    assert ids.unique().numel() >= min(100, int((probs > 0.05).sum()))


def test_equal_logits_rank_by_id() -> None:
    """Ties at the edge of a set go to the lowest ids, with top_k, with top_p and in the greedy choice."""
    sampling_checks.check_equal_logits(run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 63, 64, 65, 4096, 50257])
def test_greedy(vocab_size: int, dtype: torch.dtype) -> None:
    """Temperature 0 is the largest logit, the lowest id among equals, whatever top_k, top_p and seed say."""
    logits = random_logits(9, vocab_size + 3).to(dtype)[:, :vocab_size]
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert run(logits, temperature=0).tolist() == expected
    assert run(logits, temperature=0, top_k=3, top_p=0.5, first_seed=99, output_idx=5).tolist() == expected


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-45])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    """A temperature near zero neither overflows nor yields anything but the largest logit."""
    sampling_checks.check_tiny_temperature(run, temperature)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_same_seed_same_tokens(temperature: float, top_k: int, top_p: float) -> None:
    """A row's token depends on its logits, seed and output_idx only: not on batch mates, nor threads."""
    logits = random_logits(64, 5000, scale=2)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    together = run(logits, first_seed=10, **settings)
    ops.set_num_threads(2)
    assert torch.equal(run(logits, first_seed=10, **settings), together)
    ops.set_num_threads(1)
    alone = torch.cat([run(logits[j : j + 1], first_seed=10 + j, **settings) for j in range(64)])
    assert torch.equal(alone, together)
    assert not torch.equal(run(logits, first_seed=1000, **settings), together)
    assert not torch.equal(run(logits, first_seed=10, output_idx=1, **settings), together)


def test_large_seeds() -> None:
    """All 64 bits of a seed count, negative ones included."""
    logits = random_logits(1000)[None]
    seeds = [0, -1, 2**32, 2**63 - 1, -(2**63), 1 << 40]

    def one(seed: Tensor) -> int:
        return int(
            ops.sample(
                logits,
                temperature=torch.ones(1),
                top_k=torch.zeros(1, dtype=torch.int32),
                top_p=torch.ones(1),
                seed=seed,
                output_idx=torch.zeros(1, dtype=torch.int32),
            )[0]
        )

    ids = [one(torch.tensor([seed])) for seed in seeds]
    assert len(set(ids)) == len(ids)
    assert one(torch.tensor([2**64 - 1], dtype=torch.uint64)) == ids[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks(dtype: torch.dtype) -> None:
    """Masked ids are never drawn, the logits stay as they are, rows without a mask are not affected."""
    sampling_checks.check_masks(run, random_logits(4, 300, scale=3).to(dtype))


def test_minus_inf_is_never_drawn() -> None:
    """Logits of -inf have no probability, even where top_k asks for more tokens than there are."""
    sampling_checks.check_minus_inf(run, 300)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("value", "given"),
    [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf for every token that is not masked")],
)
def test_bad_row_is_named(value: float, given: str, temperature: float, dtype: torch.dtype) -> None:
    """A row that cannot be sampled is named and gets -1; the other rows are sampled all the same."""
    for column in (0, 13, 99):
        logits = random_logits(3, 100).to(dtype)
        logits[1, column] = value
        if value == -math.inf:
            logits[1] = value
        good = run(logits[[0, 2]], temperature=temperature)
        out = torch.full((3,), -7, dtype=torch.int32)
        with pytest.raises(REFUSED, match=rf"logits\[1\]: got {given}; allowed"):
            ops.sample(
                logits,
                temperature=torch.full((3,), temperature),
                top_k=torch.zeros(3, dtype=torch.int32),
                top_p=torch.ones(3),
                seed=torch.tensor([0, 5, 1]),
                output_idx=torch.zeros(3, dtype=torch.int32),
                out=out,
            )
        assert out.tolist() == [int(good[0]), -1, int(good[1])]


def test_bad_settings_are_named() -> None:
    """A negative or NaN temperature, and tensors that do not fit, are refused."""
    logits = random_logits(2, 100)
    for temperature in (-1.0, math.nan):
        with pytest.raises(REFUSED, match=r"temperature\[0\]: got .*; allowed: 0 or more"):
            run(logits, temperature=temperature)
    with pytest.raises(
        ValueError, match=r"logits: got .*allowed: \[num_rows, vocab_size\] with contiguous rows"
    ):
        run(logits.T)
    with pytest.raises(TypeError, match=r"logits: got torch.float64; allowed: torch.float32, torch.bfloat16"):
        run(logits.double())


def test_no_rows() -> None:
    """Nothing to sample is fine."""
    assert run(torch.zeros((0, 10))).shape == (0,)


def test_last_token_ids() -> None:
    """Each id also lands in its row's entry, 0 in place of -1; the other entries stay."""
    logits = random_logits(4, 500, scale=2)
    logits[2, 17] = math.nan
    last = torch.full((6,), -9, dtype=torch.int32)
    given = arguments(logits) | {"last_token_ids": last}
    with pytest.raises(ValueError, match="sample_rows: got None; allowed: a tensor when last_token_ids"):
        ops.sample(logits, **given)
    given["sample_rows"] = torch.tensor([4, 0, 1, 3], dtype=torch.int32)
    out = torch.empty(4, dtype=torch.int32)
    with pytest.raises(REFUSED, match=r"logits\[2\]"):
        ops.sample(logits, **given, out=out)
    assert last.tolist() == [int(out[1]), 0, -9, int(out[3]), int(out[0]), -9]
    assert out.tolist()[2] == -1
    with pytest.raises(ValueError, match=r"sample_rows: got \[4, 0, 1, 6\]; allowed: 0 to 5"):
        ops.sample(logits, **given | {"sample_rows": torch.tensor([4, 0, 1, 6], dtype=torch.int32)})


def test_philox_known_answers() -> None:
    """The published test vectors of Philox4x32-10 that fit a 64-bit counter."""
    assert _core_parts.philox4x32(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = {
        tuple(_core_parts.philox4x32(seed, counter)) for seed in (0, 1, 2**63) for counter in (0, 1, 2**40)
    }
    assert len(words) == 9


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 0.9, 0.0),
        pytest.param(1.0, 0, 0.9, 0.01, marks=pytest.mark.slow),
        pytest.param(1.5, 0, 0.95, 0.0, marks=pytest.mark.slow),
        (1.0, 3000, 0.9, 0.0),
        pytest.param(1.0, 3000, 1.0, 0.0, marks=pytest.mark.slow),
    ],
)
def test_every_draw_is_where_float64_has_it(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Each id, and of the others none but for rounding; ties of bfloat16, and values that are no bfloat16.
    What says so judges the GPU's draws, too."""
    logits = random_logits(24, 20000, scale=2.5).bfloat16().float()
    logits[::2] += random_logits(12, 20000, seed=1)
    for row, token in enumerate(
        ops.sample(
            logits,
            temperature=torch.full((24,), temperature),
            top_k=torch.full((24,), top_k, dtype=torch.int32),
            top_p=torch.full((24,), top_p),
            seed=torch.arange(24),
            output_idx=torch.full((24,), 5, dtype=torch.int32),
            min_p=torch.full((24,), min_p),
        ).tolist()
    ):
        given: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": row,
            "output_idx": 5,
        }
        assert draw_error(logits[row], token, **given) <= ROUNDING
        probs = reference_probs(logits[row], temperature, top_k, top_p)
        for other in probs.topk(8).indices.tolist():
            assert other == token or draw_error(logits[row], other, **given) > ROUNDING
        assert draw_error(logits[row], int(probs.argmin()), **given) > ROUNDING
