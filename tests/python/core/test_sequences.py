"""n > 1: sequences of one request share its prompt's blocks, and nothing else."""

from __future__ import annotations

import random

import _core_parts
import numpy as np
import pytest
import step_settings
from core_helpers import Driver, key_of, make_core
from quire import _core

SETTINGS = step_settings.SETTINGS | {"two at a time": {"max_num_seqs": 2}}


def num_used(core: _core.EngineCore) -> int:
    stats = core.stats()
    return stats.num_blocks - stats.num_free_blocks


def steps_until(driver: Driver, num_running: int) -> None:
    while driver.core.stats().num_running < num_running:
        driver.step()


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_each_sequence_gets_the_tokens_it_gets_alone(
    name: str, seed: int, max_batches_in_flight: int
) -> None:
    """Whatever its siblings, batch mates, chunks and preemptions; the ends of all come, and all blocks are
    free then (run())."""
    rng = random.Random(seed)
    driver = Driver(
        make_core(**SETTINGS[name], max_batches_in_flight=max_batches_in_flight, eos_token_ids=[1, 2, 3])
    )
    for request_id in range(16):
        prompt = [rng.randrange(10, 256) for _ in range(rng.randrange(1, 40))]
        driver.add(request_id, prompt, max_tokens=rng.randrange(1, 30), n=rng.choice([1, 2, 3, 5, 9]))
    num_forks = 0
    while driver.core.has_unfinished_requests():
        num_forks += int((driver.step().slot_mapping < 0).sum())
    driver.run()
    if name not in ("one at a time", "one token a step"):  # there is no room beside the first sequence
        assert num_forks > 0
    if "preemption" in name:
        assert driver.core.stats().num_preemptions > 0
    for key, sequence in driver.sequences.items():
        expected: list[int] = []
        max_tokens = driver.params[key if isinstance(key, int) else key[0]].max_tokens
        while len(expected) < max_tokens and (not expected or expected[-1] not in (1, 2, 3)):
            expected.append(driver.model.next_token(sequence.prompt + expected, index=sequence.index))
        assert sequence.released == expected


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 11])
def test_full_blocks_are_shared_and_the_last_one_is_copied(size: int, caching: bool) -> None:
    """Blocks of 4: a prompt of 11 has two full ones, held once for all four sequences; each fork computes
    one token of it, in place of none, and writes none of it."""
    driver = Driver(make_core(enable_prefix_caching=caching))
    driver.add(7, list(range(size)), n=4, max_tokens=9)
    batch = driver.step()
    assert (batch.num_seqs, batch.num_tokens, len(batch.block_copies)) == (1, size, 0)
    prompt_blocks = batch.block_tables[batch.block_table_rows[0]].tolist()
    batch = driver.step()
    assert batch.request_ids.tolist() == [7] * 4
    assert batch.sequence_index.tolist() == [0, 1, 2, 3]
    assert batch.positions.tolist() == [size, *[size - 1] * 3]
    assert batch.slot_mapping.tolist()[1:] == [-1] * 3
    assert batch.seq_lens.tolist() == [size + 1, *[size] * 3]
    num_full, rest = divmod(size, 4)
    tables = batch.block_tables[batch.block_table_rows].tolist()
    assert all(table[:num_full] == prompt_blocks[:num_full] for table in tables)
    copies = batch.block_copies.tolist()
    if rest:
        assert [source for source, _ in copies] == [prompt_blocks[num_full]] * 3
        assert [destination for _, destination in copies] == [table[num_full] for table in tables[1:]]
        assert len({table[num_full] for table in tables}) == 4
    else:
        assert copies == []
    assert num_used(driver.core) == num_full + (4 if rest else 1)
    driver.step()
    assert num_used(driver.core) == -(-(size + 2) // 4) + 3 * (-(-(size + 1) // 4) - num_full)
    for sequence in driver.run().values():
        assert len(sequence.released) == 9


def test_a_prompt_counts_once() -> None:
    """In the statistics it is looked up once and computed once; each sequence's end says what was found."""
    driver = Driver(make_core())
    prompt = list(range(22))
    driver.add(1, prompt, n=1, max_tokens=1)
    driver.run()
    driver.add(2, prompt, n=5, max_tokens=3)
    driver.run()
    stats = driver.core.stats()
    assert stats.prefix_cache_queries == 2 * 22
    assert stats.prefix_cache_hits == 20
    assert stats.num_computed_prompt_tokens == 22 + 2
    assert (
        stats.num_prompt_tokens == stats.num_computed_prompt_tokens + stats.num_cached_prompt_tokens == 6 * 22
    )
    assert stats.num_generation_tokens == 1 + 5 * 3
    assert [driver.sequences[key_of(2, i)].num_cached_tokens for i in range(5)] == [20] * 5


def test_a_sequence_that_ends_at_once_leaves_its_prompt_in_the_cache() -> None:
    """Nobody is there to fork from: the others are admitted as any request, and then each other's source."""
    driver = Driver(make_core())
    driver.add(1, list(range(10)), n=3, max_tokens=1)
    sizes = [driver.step().num_tokens for _ in range(3)]
    assert sizes == [10, 2, 2]
    driver.run()
    driver.add(2, list(range(100, 110)), n=3, max_tokens=2)
    assert [driver.step().num_tokens for _ in range(3)] == [10, 3, 2]


def test_forks_wait_for_room_and_let_others_pass_while_the_prompt_is_computed() -> None:
    """max_num_seqs holds for sequences; behind a prompt that is not complete, others are admitted."""
    driver = Driver(make_core(max_num_seqs=3, max_num_batched_tokens=12, max_batches_in_flight=2))
    driver.add(1, list(range(20)), n=5, max_tokens=4)
    driver.add(2, [5] * 3, max_tokens=9)
    first = driver.launch()
    assert first.request_ids.tolist() == [1]
    second = driver.launch()
    assert second.request_ids.tolist() == [1, 2]
    driver.collect()
    third = driver.launch()  # the prompt's batch is still in flight: nobody knows that it is complete
    assert third.request_ids.tolist() == [1, 2]
    driver.collect()
    fourth = driver.launch()
    assert fourth.request_ids.tolist() == [1, 2, 1]
    assert fourth.sequence_index.tolist() == [0, 0, 1]
    assert driver.core.stats().num_waiting == 3
    assert all(len(s.released) == (9 if key == 2 else 4) for key, s in driver.run().items())


def test_forks_fall_back_when_their_source_is_preempted() -> None:
    """Sequence 0 gives its blocks back before the others come: one of them is admitted as any request."""
    driver = Driver(make_core(num_blocks=8, max_num_seqs=2, enable_prefix_caching=False, max_model_len=33))
    driver.add(1, [1] * 15, max_tokens=18)
    driver.add(2, [2] * 14, n=3, max_tokens=10)
    driver.run()
    assert driver.core.stats().num_preemptions > 0
    for key, sequence in driver.sequences.items():
        assert len(sequence.released) == (18 if key == 1 else 10)


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_cancel_ends_all_sequences_at_once(max_batches_in_flight: int) -> None:
    """Running, forked in a batch in flight, and waiting ones; an end for each that is not finished."""
    driver = Driver(make_core(max_num_seqs=3, max_batches_in_flight=max_batches_in_flight))
    driver.add(1, list(range(9)), n=5, max_tokens=50)
    steps_until(driver, 3)
    driver.launch()
    driver.core.cancel(1)
    driver.core.check_integrity()
    assert num_used(driver.core) == 0
    driver.run()
    assert [driver.sequences[key_of(1, i)].finish_reason for i in range(5)] == ["cancelled"] * 5
    driver.core.cancel(1)
    assert len(driver.core.take_outputs()) == 0


def test_failing_ends_all_sequences_with_the_message() -> None:
    core = make_core()
    core.add_request(1, [1, 2, 3], _core.SamplingParams(n=3))
    core.fail(1, "no")
    releases = core.take_outputs().releases
    assert [(r.index, r.finish_reason, r.error) for r in releases] == [(i, "error", "no") for i in range(3)]
    assert not core.has_unfinished_requests()


def test_a_sequence_without_a_token_ends_alone() -> None:
    """Its logits are not finite; the others have theirs."""
    driver = Driver(make_core())
    driver.add(1, list(range(6)), n=3, max_tokens=5)
    driver.step()
    driver.core.schedule()
    releases = driver.core.update(np.array([20, -1, 22], dtype=np.int32)).releases
    driver.core.check_integrity()
    assert [(r.index, r.finish_reason) for r in releases] == [(0, ""), (1, "error"), (2, "")]
    assert driver.core.stats().num_running == 2


@pytest.mark.parametrize("has_run", [False, True])
def test_forks_of_a_forgotten_batch_fork_again(has_run: bool) -> None:
    """Nobody knows whether their blocks were copied; what they hold is given back, and no block is lost."""
    driver = Driver(make_core(max_batches_in_flight=2))
    driver.add(1, list(range(10)), n=4, max_tokens=6)
    driver.step()
    driver.step()
    steps_until(driver, 4)
    driver.forget(has_run)
    assert driver.core.stats().num_running == 1
    assert driver.core.stats().num_waiting == 3
    batch = driver.launch()
    assert batch.sequence_index.tolist() == [0, 1, 2, 3]
    assert len(batch.block_copies) == 3
    for sequence in driver.run().values():
        assert len(sequence.released) == 6


def test_forks_of_a_forgotten_batch_without_a_source_compute_the_prompt() -> None:
    """Their sibling ended meanwhile."""
    driver = Driver(make_core(eos_token_ids=[9]))
    driver.core.add_request(1, list(range(100, 110)), _core.SamplingParams(n=2, max_tokens=6))
    driver.core.schedule()
    driver.core.update(np.array([50], dtype=np.int32))
    batch = driver.core.schedule()
    assert batch.sequence_index.tolist() == [0, 1]
    driver.core.forget_batches()
    driver.core.check_integrity()
    batch = driver.core.schedule()
    assert len(batch.block_copies) == 1
    driver.core.update(np.array([9, 51], dtype=np.int32))
    batch = driver.core.schedule()
    assert batch.sequence_index.tolist() == [1]
    assert batch.token_ids.tolist() == [51]
    driver.core.check_integrity()


def test_seeds_follow_from_the_request_s() -> None:
    """Sequence 0 draws as a request with n = 1; the others' seeds are those of sequence_seed, all
    different, also among neighbouring seeds."""
    core = make_core(max_num_seqs=64)
    for request_id, seed in enumerate((0, 1, -1, 2**63 - 1)):
        core.add_request(request_id, [1, 2, 3, 4], _core.SamplingParams(n=9, seed=seed, max_tokens=9))
    core.schedule()
    core.update(np.full(4, 5, dtype=np.int32))
    batch = core.schedule()
    seeds = dict(
        zip(
            zip(batch.request_ids.tolist(), batch.sequence_index.tolist(), strict=True),
            batch.seed.tolist(),
            strict=True,
        )
    )
    assert len(seeds) == len(set(seeds.values())) == 36
    for (request_id, index), seed in seeds.items():
        base = (0, 1, 2**64 - 1, 2**63 - 1)[request_id]
        assert seed == _core_parts.sequence_seed(base, index)
        assert index or seed == base
    many = {_core_parts.sequence_seed(seed, index) for seed in range(100) for index in range(128)}
    assert len(many) == 12_800


def test_requests_without_a_seed_differ() -> None:
    core = make_core()
    for request_id in range(2):
        core.add_request(request_id, [1, 2, 3, 4], _core.SamplingParams(n=3, max_tokens=9))
    core.schedule()
    core.update(np.full(2, 5, dtype=np.int32))
    assert len(set(core.schedule().seed.tolist())) == 6


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n": 0}, r"n: got 0; allowed: an integer in \[1, 128\]"),
        ({"n": 129}, r"n: got 129; allowed: an integer in \[1, 128\]"),
        ({"n": 2, "temperature": 0.0}, "n: got 2 with temperature 0; allowed: 1 "),
    ],
)
def test_refusals(params: dict[str, object], message: str) -> None:
    """Greedy sequences would all be the same. The engine is unchanged."""
    core = make_core()
    with pytest.raises(_core.InvalidArgument, match=message):
        core.add_request(1, [1, 2, 3], _core.SamplingParams(**params))
    assert not core.has_unfinished_requests()
    core.check_integrity()
