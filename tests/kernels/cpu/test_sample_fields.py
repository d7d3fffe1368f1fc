"""min_p, penalties and logprobs: against plain torch references, exact sets and chi-square."""

from __future__ import annotations

import math

import pytest
import torch
from quire import ops
from sampling_checks import chi_square_in_sigmas, random_logits, reference_probs
from torch import Tensor

IN_PROMPT, MAX_COUNT = 0x8000, 0x7FFF
DTYPES = [torch.float32, torch.bfloat16]
PENALTIES = [(1.3, 0.0, 0.0), (1.0, 0.7, 0.0), (1.0, 0.0, 0.4), (0.8, -0.5, 0.3), (1.7, 0.6, -0.2)]


def settings(n: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> dict[str, Tensor]:
    """Row j has seed j."""
    return {
        "temperature": torch.full((n,), float(temperature)),
        "top_k": torch.full((n,), top_k, dtype=torch.int32),
        "top_p": torch.full((n,), float(top_p)),
        "seed": torch.arange(n),
        "output_idx": torch.zeros(n, dtype=torch.int32),
    }


def penalties(n: int, repetition: float, presence: float, frequency: float) -> dict[str, Tensor]:
    given = {"repetition": repetition, "presence": presence, "frequency": frequency}
    return {f"{name}_penalty": torch.full((n,), float(value)) for name, value in given.items()}


def as_counts(table: Tensor) -> Tensor:
    """The uint16 table of an int32 one: torch computes with few uint16 functions."""
    return table.to(torch.int32).to(torch.int16).view(torch.uint16)


def as_ints(counts: Tensor) -> Tensor:
    return counts.view(torch.int16).to(torch.int32) & 0xFFFF


def random_table(rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    """A third of the tokens in the prompt, a third in the output."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.rand((rows, vocab_size), generator=generator) < 0.3
    counts = torch.randint(1, 6, (rows, vocab_size), generator=generator)
    counts[torch.rand((rows, vocab_size), generator=generator) > 0.3] = 0
    return (prompt * IN_PROMPT + counts).to(torch.int32)


def penalised(logits: Tensor, table: Tensor, repetition: float, presence: float, frequency: float) -> Tensor:
    """What quire/kernels/sampling.h says, each step rounded to float32."""
    x, count = logits.float(), table & MAX_COUNT
    repetition, presence, frequency = torch.tensor([repetition, presence, frequency])
    y = torch.where(x > 0, x / repetition, x * repetition)
    y = (y.double() - frequency.double() * count.double()).float()
    y = torch.where(count > 0, y - presence, y)
    return torch.where(table > 0, y, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("repetition", "presence", "frequency"), PENALTIES)
def test_penalties(repetition: float, presence: float, frequency: float, dtype: torch.dtype) -> None:
    """The greedy choice is that of the penalised logits, and is counted in the row's entry alone."""
    logits, table = random_logits(40, 200).to(dtype), random_table(60, 200)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(1))[:40].to(torch.int32)
    counts = as_counts(table)
    given = penalties(40, repetition, presence, frequency)
    for step in range(5):
        expected = penalised(logits, table[rows.long()], repetition, presence, frequency)
        if step == 0:
            assert (expected.argmax(-1) != logits.float().argmax(-1)).sum() > 5
        ids = ops.sample(
            logits, **settings(40, temperature=0), **given, token_counts=counts, sample_rows=rows
        )
        values = expected.gather(1, ids.long()[:, None])
        assert torch.equal(values, expected.max(-1, keepdim=True).values)
        table[rows.long(), ids.long()] += 1
        assert torch.equal(as_ints(counts), table)


def test_distribution_of_penalised_rows() -> None:
    """30,000 draws follow the softmax of the penalised logits, with top_k and min_p in their order."""
    n, logits, table = 30000, random_logits(300, scale=2), random_table(1, 300)
    for top_k, min_p in [(0, 0.0), (40, 0.0), (0, 0.02), (12, 0.01)]:
        ids = ops.sample(
            logits.expand(n, -1),
            **settings(n, temperature=1.2, top_k=top_k),
            **penalties(n, 1.2, 0.3, 0.2),
            token_counts=as_counts(table.expand(n, -1).contiguous()),
            sample_rows=torch.arange(n, dtype=torch.int32),
            min_p=torch.full((n,), min_p),
        )
        adjusted = penalised(logits, table[0], 1.2, 0.3, 0.2)
        if min_p > 0:
            adjusted[(adjusted - adjusted.max()) / 1.2 < math.log(min_p)] = -math.inf
        probs = reference_probs(adjusted, 1.2, top_k, 1.0)
        assert (probs[ids.long()] > 0).all()
        assert abs(chi_square_in_sigmas(ids, probs)) < 4


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.8])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (9, 1.0), (0, 0.7), (15, 0.8)])
def test_min_p_set(top_k: int, top_p: float, temperature: float) -> None:
    """Exactly the tokens at least min_p times as likely as the likeliest; top_k and top_p see these alone."""
    logits = random_logits(500, scale=2)
    for min_p in (0.02, 0.3, 1.0):
        probs = (logits.double() / temperature).softmax(0)
        kept = torch.where(probs >= min_p * probs.max(), logits, -math.inf)
        expected = reference_probs(kept, temperature, top_k, top_p)
        ids = ops.sample(
            logits.expand(8000, -1),
            **settings(8000, temperature=temperature, top_k=top_k, top_p=top_p),
            min_p=torch.full((8000,), min_p),
        )
        assert (expected[ids.long()] > 0).all()
        assert (expected > 0).sum() == 1 or abs(chi_square_in_sigmas(ids, expected)) < 4


def test_rows_without_fields_are_as_before() -> None:
    """Neutral values change no id, whatever the table holds, and leave the table alone."""
    logits = random_logits(64, 3000, scale=2)
    for top_k, top_p in [(0, 1.0), (20, 1.0), (0, 0.9)]:
        plain = settings(64, top_k=top_k, top_p=top_p)
        table = random_table(64, 3000)
        counts = as_counts(table)
        ids = ops.sample(
            logits,
            **plain,
            **penalties(64, 1.0, 0.0, 0.0),
            token_counts=counts,
            sample_rows=torch.arange(64, dtype=torch.int32),
            min_p=torch.zeros(64),
        )
        assert torch.equal(ids, ops.sample(logits, **plain))
        assert torch.equal(as_ints(counts), table)


def test_counts_stop_at_their_largest() -> None:
    """A token counted 32,767 times stays there, and does not become one of the prompt."""
    counts = as_counts(torch.tensor([[0, MAX_COUNT, 0], [0, IN_PROMPT + MAX_COUNT, 0]]))
    given = {**settings(2, temperature=0), **penalties(2, 1.0, 0.0, 1e-6)}
    ids = ops.sample(
        torch.tensor([[0.0, 5.0, 0.0]]).expand(2, -1),
        **given,
        token_counts=counts,
        sample_rows=torch.tensor([0, 1], dtype=torch.int32),
    )
    assert ids.tolist() == [1, 1]
    assert as_ints(counts)[:, 1].tolist() == [MAX_COUNT, IN_PROMPT + MAX_COUNT]


def requests_tokens(vocab_size: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Arguments of ops.token_counts for 3 rows of 7; the rows, and what they hold afterwards."""
    generator = torch.Generator().manual_seed(3)
    lengths, prompt_lens = [400, 0, 90], [150, 0, 90]
    token_ids = torch.randint(-3, vocab_size + 3, (sum(lengths),), generator=generator, dtype=torch.int32)
    token_ids[200:260] = 5
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    rows = torch.tensor([6, 0, 3], dtype=torch.int32)
    expected = torch.zeros((3, vocab_size), dtype=torch.int32)
    for i, prompt_len in enumerate(prompt_lens):
        for j, token in enumerate(token_ids[offsets[i] : offsets[i + 1]].tolist()):
            if 0 <= token < vocab_size:
                if j < prompt_len:
                    expected[i, token] |= IN_PROMPT
                else:
                    expected[i, token] += 1
    given = {
        "rows": rows,
        "token_offsets": offsets.to(torch.int32),
        "prompt_lens": torch.tensor(prompt_lens, dtype=torch.int32),
        "token_ids": token_ids,
    }
    return given, rows, expected


@pytest.mark.parametrize("vocab_size", [100, 8192, 20001])
def test_token_counts(vocab_size: int) -> None:
    """Rows of new and resumed requests are written whole; other rows and ids outside stay out of it."""
    given, rows, expected = requests_tokens(vocab_size)
    counts = as_counts(torch.full((7, vocab_size), 0xABCD))
    ops.token_counts(counts, **given)
    assert torch.equal(as_ints(counts)[rows.long()], expected)
    others = [row for row in range(7) if row not in rows.tolist()]
    assert (as_ints(counts)[others] == 0xABCD).all()


def logprobs_out(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Poisoned."""
    return (
        torch.full((n,), 77.0),
        torch.full((n,), -7, dtype=torch.int32),
        torch.full((n, 20), -7, dtype=torch.int32),
        torch.full((n, 20), 77.0),
    )


def check_logprobs(
    logits: Tensor, token_ids: Tensor, num_logprobs: list[int], out: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """Against sorting and log_softmax in float64; what is off is not written."""
    for row, n in enumerate(num_logprobs):
        token_logprob, rank, top_ids, top_logprobs = (tensor[row] for tensor in out)
        n = min(max(n, 0), 20)
        assert (top_ids[n:] == -7).all()
        assert (top_logprobs[n:] == 77).all()
        if n == 0:
            assert (int(rank), float(token_logprob)) == (-7, 77)
            continue
        expected = logits[row].double().log_softmax(0)
        order = logits[row].float().sort(descending=True, stable=True).indices
        token = int(token_ids[row])
        assert math.isclose(float(token_logprob), float(expected[token]), abs_tol=2e-5, rel_tol=2e-6)
        assert order[int(rank) - 1] == token
        there = min(n, int((logits[row] > -math.inf).sum()))
        assert top_ids[:there].tolist() == order[:there].tolist()
        assert (top_ids[there:n] == -1).all()
        assert (top_logprobs[there:n] == -math.inf).all()
        torch.testing.assert_close(
            top_logprobs[:there].double(), expected[order[:there]], atol=2e-5, rtol=2e-6
        )


def logprobs_case(vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    """Random and flat rows, with ties, most of a row at -inf, and every n."""
    logits = random_logits(24, vocab_size, scale=4)
    logits[1] = 0
    logits[2] = (logits[2]).round()
    logits[3, vocab_size // 3 + 1 :] = -math.inf
    logits[4, : vocab_size - 1] = -math.inf
    logits[5] *= 0.01
    logits[6] *= 10
    token_ids = torch.randint(0, vocab_size, (24,), generator=torch.Generator().manual_seed(5)).to(
        torch.int32
    )
    token_ids[3], token_ids[4] = 0, vocab_size - 1
    return logits.to(dtype), token_ids, [5, 20, 20, 20, 3, 0, 1, -1, 21, *range(15)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 7, 1000, 50257])
def test_logprobs(vocab_size: int, dtype: torch.dtype) -> None:
    """Logprobs and ranks of the sampled token and of the n likeliest, ties by id."""
    logits, token_ids, num_logprobs = logprobs_case(vocab_size, dtype)
    out = logprobs_out(24)
    ops.logprobs(
        logits, token_ids=token_ids, num_logprobs=torch.tensor(num_logprobs, dtype=torch.int32), out=out
    )
    check_logprobs(logits, token_ids, num_logprobs, out)


def test_logprobs_of_bad_rows() -> None:
    """A row that cannot be sampled has NaN, 0 and -1; an id outside the vocabulary changes nothing else."""
    logits = random_logits(5, 300)
    logits[0, 7], logits[1, 299], logits[2] = math.nan, math.inf, -math.inf
    token_ids = torch.tensor([-1, -1, -1, -1, 300], dtype=torch.int32)
    out = logprobs_out(5)
    ops.logprobs(logits, token_ids=token_ids, num_logprobs=torch.full((5,), 2, dtype=torch.int32), out=out)
    assert out[0].isnan().all()
    assert out[1].tolist() == [0] * 5
    assert (out[2][:3, :2] == -1).all()
    assert out[3][:3, :2].isnan().all()
    assert torch.equal(out[2][3:, :2], logits[3:].topk(2).indices.int())


def test_wrong_arguments_are_named() -> None:
    """Penalties need all of their tensors, and rows of the table."""
    logits, table = random_logits(2, 50), as_counts(torch.zeros((3, 50)))
    rows = torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match="token_counts: got None"):
        ops.sample(logits, **settings(2), **penalties(2, 1.1, 0, 0))
    with pytest.raises(ValueError, match="sample_rows: got None"):
        ops.sample(logits, **settings(2), **penalties(2, 1.1, 0, 0), token_counts=table)
    with pytest.raises(ValueError, match=r"sample_rows: got \[0, 3\]; allowed: 0 to 2"):
        ops.sample(logits, **settings(2), **penalties(2, 1.1, 0, 0), token_counts=table, sample_rows=rows)
    with pytest.raises(ValueError, match=r"min_p: got .*; allowed: contiguous torch.float32"):
        ops.sample(logits, **settings(2), min_p=torch.zeros(3))
