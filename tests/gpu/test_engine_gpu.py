"""The whole engine on the GPU: greedy ids of random models against a float32 Llama in plain torch, however
the work is cut into steps, and equal ids where equal bits are promised.

Every token of every answer is judged by what the reference makes of the answer before it (`gaps`), so that
one undecided choice does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import _core_parts
import pytest
import torch
from gpu_engines import make_llm, prompts
from llama_models import MODELS
from llama_reference import gaps
from quire import SamplingParams

pytestmark = pytest.mark.gpu

# How far below the reference's best a choice may lie, in standard deviations of the logits, and the least
# share of choices that are the best. Seen with the CPU engine in bfloat16: at most 0.08, at least 97 %. Seen
# with the reference itself when its keys and values are rounded to e4m3: 0.27 and 84 %. A wrong kernel's
# choices lie several deviations below.
BFLOAT16_GAP, BFLOAT16_AGREEING = 0.15, 0.93
FLOAT8_GAP, FLOAT8_AGREEING = 0.5, 0.75

MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "eager": {"enforce_eager": True},
    "chunked": {"max_num_batched_tokens": 40, "max_num_seqs": 8},
    "unchunked": {"enable_chunked_prefill": False, "max_num_batched_tokens": 1024},
    "no-prefix-caching": {"enable_prefix_caching": False},
    "large-blocks": {"block_size": 64},
    "batch-invariant": {"batch_invariant": True},
}
NUM_TOKENS = 48
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


def ids(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def check(
    folder: Path,
    given: list[list[int]],
    answers: list[list[int]],
    what: str,
    gap: float = BFLOAT16_GAP,
    agreeing: float = BFLOAT16_AGREEING,
) -> None:
    """Each token is near the reference's best, and most are the best."""
    all_gaps = []
    for index, (prompt, answer) in enumerate(zip(given, answers, strict=True)):
        assert len(answer) == NUM_TOKENS, f"{what}, prompt {index}"
        of_tokens = gaps(folder, prompt, answer)
        worst = int(of_tokens.argmax())
        assert of_tokens[worst] <= gap, (
            f"{what}, prompt {index} of {len(prompt)} tokens: token {worst} is {answer[worst]}, which the "
            f"reference puts {of_tokens[worst]:.3f} deviations below its best"
        )
        all_gaps.append(of_tokens)
    share = (torch.cat(all_gaps) == 0).float().mean().item()
    assert share >= agreeing, f"{what}: only {share:.1%} of the tokens are the reference's"


@pytest.mark.parametrize("model", MODELS)
def test_alone(folder: Callable[[str], Path], model: str) -> None:
    """One request at a time."""
    llm = make_llm(folder(model))
    given = prompts(model, 1, 11)
    check(folder(model), given, [ids(llm.generate(prompt, GREEDY))[0] for prompt in given], model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", MODELS)
def test_with_batch_mates(folder: Callable[[str], Path], model: str, mode: str) -> None:
    """Many requests at once, under every way to cut the work into steps."""
    llm = make_llm(folder(model), **MODES[mode])
    given = prompts(model, 2, 22)
    check(folder(model), given, ids(llm.generate(given, GREEDY)), f"{model}, {mode}")


def test_more_requests_than_seats(folder: Callable[[str], Path]) -> None:
    """Requests of unequal length come and go, so that the batch takes every size up to the largest."""
    model = "gqa2-64"
    llm = make_llm(folder(model), max_num_seqs=20)
    given = prompts(model, 3, 70, lengths=(1, 5, 40))
    lengths = [1 + i % NUM_TOKENS for i in range(len(given))]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    answers = ids(llm.generate(given, params))
    assert [len(answer) for answer in answers] == lengths
    worst = max(
        float(gaps(folder(model), prompt, answer).max())
        for prompt, answer in zip(given, answers, strict=True)
    )
    assert worst <= BFLOAT16_GAP


def test_long_context(folder: Callable[[str], Path]) -> None:
    """Contexts that decode splits over many blocks, beside short ones."""
    model = "gqa8-128-llama3-rope"
    llm = make_llm(folder(model))
    given = prompts(model, 4, 5, lengths=(960, 3, 700, 513, 64))
    check(folder(model), given, ids(llm.generate(given, GREEDY)), "long context")


def test_preemption(folder: Callable[[str], Path]) -> None:
    """A pool that is too small for all: requests are thrown out, computed again, and say the same."""
    model = "gqa2-64"
    llm = make_llm(folder(model), max_model_len=128, num_gpu_blocks_override=20, watermark=0.0)
    given = prompts(model, 5, 16, lengths=(1, 16, 33, 40))
    check(folder(model), given, ids(llm.generate(given, GREEDY)), "preemption")
    stats = llm.stats()
    assert stats.num_preemptions > 0
    assert stats.num_free_blocks == stats.num_blocks == 20


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_batched_tokens": 40, "max_num_seqs": 8}], ids=["", "chunked"]
)
def test_prefix_reuse(folder: Callable[[str], Path], settings: dict[str, Any]) -> None:
    """Prompts that begin alike reuse the blocks and say the same as without."""
    model = "gqa4-96-biases"
    llm = make_llm(folder(model), **settings)
    beginning = prompts(model, 6, 1, lengths=(70,))[0]
    given = [beginning + end for end in ([], *prompts(model, 7, 5, lengths=(1, 9, 10, 11, 40)))]
    assert llm.generate(given[:1], GREEDY)[0].num_cached_tokens == 0
    rest = llm.generate(given, GREEDY)
    assert [output.num_cached_tokens for output in rest] == [64] * len(given)
    check(folder(model), given, ids(rest), "prefix reuse")


@pytest.mark.parametrize("model", MODELS)
def test_float8_cache(folder: Callable[[str], Path], model: str) -> None:
    """Keys and values of four bits: further from the reference, but no further than that."""
    llm = make_llm(folder(model), kv_cache_dtype="fp8")
    given = prompts(model, 8, 11)
    answers = ids(llm.generate(given, GREEDY))
    check(folder(model), given, answers, f"float8 cache, {model}", FLOAT8_GAP, FLOAT8_AGREEING)


SAMPLED = [
    SamplingParams(temperature=1.0, seed=1, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=0.7, top_p=0.9, seed=2, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=1.3, top_k=20, seed=3, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=1.0, top_k=50, top_p=0.8, seed=2**63 - 1, max_tokens=40, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=-5, min_tokens=10, max_tokens=40),
    GREEDY,
]


@pytest.mark.parametrize("batches_in_flight", [1, 2])
@pytest.mark.parametrize("enforce_eager", [False, True], ids=["graphs", "eager"])
def test_batch_mates_change_nothing(
    folder: Callable[[str], Path], enforce_eager: bool, batches_in_flight: int
) -> None:
    """batch_invariant: the same ids alone and among others, sampled or greedy, with graphs or without, with
    one batch in flight or two. A sampled id turns on small differences of probabilities: 40 in a row, of five
    requests, hardly agree by chance."""
    model = "gqa4-128-tied-linear-rope"
    given = prompts(model, 9, len(SAMPLED), lengths=(1, 17, 64, 130, 300, 33))
    alone = make_llm(folder(model), batch_invariant=True)
    expected = [ids(alone.generate(prompt, params))[0] for prompt, params in zip(given, SAMPLED, strict=True)]
    llm = make_llm(folder(model), batch_invariant=True, enforce_eager=enforce_eager)
    llm._engine.runner.max_batches_in_flight = batches_in_flight
    mates = prompts(model, 10, 15)
    answers = ids(llm.generate(mates + given[::-1], [GREEDY] * len(mates) + SAMPLED[::-1]))
    assert expected == answers[len(mates) :][::-1]


@pytest.mark.parametrize("num_tokens", [1, 20], ids=["prompts", "decode"])
def test_logits_bit_by_bit(folder: Callable[[str], Path], num_tokens: int) -> None:
    """batch_invariant: the last step's logits of each request are the same bits alone and beside others."""
    model = "gqa8-128-llama3-rope"
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    llm = make_llm(folder(model), batch_invariant=True, enable_prefix_caching=False)
    runner: Any = llm._engine.runner
    runner.max_batches_in_flight = 1  # no step behind the last one
    given = prompts(model, 13, 9, lengths=(1, 16, 17, 40, 64, 65, 100, 3, 2))

    def last_logits(some: list[list[int]]) -> torch.Tensor:
        llm.generate(some, params)
        return runner.logits(len(some)).cpu()

    together = last_logits(given)
    for index, prompt in enumerate(given):
        alone = last_logits([prompt])[0]
        assert alone.isfinite().all()
        assert torch.equal(together[index], alone), f"prompt {index} of {len(prompt)} tokens"
    assert torch.equal(last_logits(given[::-1]).flip(0), together)


def seed_of(seed: int, index: int) -> int:
    """Of a request with n = 1 that draws as sequence `index`."""
    derived = _core_parts.sequence_seed(seed, index)
    return derived - 2**64 if derived >= 2**63 else derived


@pytest.mark.parametrize("mode", ["batch-invariant", "eager", "large-blocks"])
def test_sequences_of_one_prompt(folder: Callable[[str], Path], mode: str) -> None:
    """n sequences over prompts that end inside a block, at its end and behind it, beside other requests:
    twice the same, all different, and each is what a request with its seed gets alone: no sequence disturbs
    another's keys and values. Only a first token may differ: alone, its logits come with the whole prompt,
    from another kernel."""
    model = "gqa2-64"
    llm = make_llm(folder(model), **{"batch_invariant": True, "enable_prefix_caching": False} | MODES[mode])
    given = prompts(model, 7, 11)
    values: dict[str, Any] = {"temperature": 0.8, "max_tokens": 40, "ignore_eos": True}
    params = [SamplingParams(n=5, seed=seed, **values) for seed in range(len(given))]
    first, again = ([[c.token_ids for c in o.outputs] for o in llm.generate(given, params)] for _ in "12")
    assert first == again
    num_equal = 0
    for seed, (prompt, answers) in enumerate(zip(given, first, strict=True)):
        assert len(set(answers)) == 5
        for index, answer in enumerate(answers):
            alone = SamplingParams(seed=seed_of(seed, index), **values)
            [expected] = ids(llm.generate(prompt, alone))
            where = f"{mode}, prompt {seed} of {len(prompt)} tokens, sequence {index}"
            assert list(answer) == expected or (index > 0 and answer[0] != expected[0]), where
            num_equal += list(answer) == expected
    assert num_equal >= 50
    stats = llm.stats()
    assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_blocks)


def test_runs_repeat(folder: Callable[[str], Path]) -> None:
    """The same calls on a new engine give the same ids, also where no bits are promised across batches."""
    model = "gqa2-256"
    given = prompts(model, 11, 12)
    params = [SAMPLED[i % len(SAMPLED)] for i in range(len(given))]
    settings: dict[str, Any] = {"enable_prefix_caching": False}
    first, second = (ids(make_llm(folder(model), **settings).generate(given, params)) for _ in range(2))
    assert first == second


def test_one_batch_in_flight_or_two(folder: Callable[[str], Path]) -> None:
    """Ids that are known one step late lead to the same answers, stops included."""
    model = "gqa2-64"
    given = prompts(model, 12, 12)
    free = ids(make_llm(folder(model)).generate(given, GREEDY))
    params = [
        SamplingParams(temperature=0, max_tokens=NUM_TOKENS, stop_token_ids=[answer[5 + i]], ignore_eos=True)
        for i, answer in enumerate(free)
    ]
    llm = make_llm(folder(model), batch_invariant=True)
    assert llm._engine.runner.max_batches_in_flight == 2
    two = ids(llm.generate(given, params))
    llm._engine.runner.max_batches_in_flight = 1
    assert two == ids(llm.generate(given, params))
    assert any(len(answer) < NUM_TOKENS for answer in two)
