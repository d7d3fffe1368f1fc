"""Rules of scheduling: budget, order, chunks, admission, preemption."""

from __future__ import annotations

import random

import pytest
from core_helpers import Driver, make_core
from quire import _core


def scheduled(batch: _core.Batch) -> dict[int, int]:
    """Request id -> tokens in this step, in the batch's order."""
    sizes = batch.query_start_loc[1:] - batch.query_start_loc[:-1]
    return dict(zip(batch.request_ids.tolist(), sizes.tolist(), strict=True))


def test_running_requests_first_then_waiting_ones_in_order_of_arrival() -> None:
    """Decodes go before a prompt's next chunk; the rest of the budget goes to the queue's head."""
    driver = Driver(make_core(max_num_batched_tokens=10, enable_prefix_caching=False))
    driver.add(0, [0] * 4, max_tokens=50)
    driver.add(1, [1] * 17, max_tokens=50)
    driver.add(2, [2] * 3, max_tokens=50)
    steps = [scheduled(driver.step()) for _ in range(4)]
    assert steps == [{0: 4, 1: 6}, {0: 1, 1: 9}, {0: 1, 1: 2, 2: 3}, {0: 1, 1: 1, 2: 1}]
    assert list(steps[2]) == [0, 1, 2]


def test_whole_prompts_wait_until_they_fit_the_budget() -> None:
    """Without chunked prefill a prompt is scheduled whole, and nobody behind it passes."""
    settings = {"enable_chunked_prefill": False, "max_num_batched_tokens": 32, "max_model_len": 32}
    driver = Driver(make_core(**settings))
    driver.add(0, [0] * 20, max_tokens=5)
    driver.add(1, [1] * 13, max_tokens=5)
    driver.add(2, [2] * 3, max_tokens=5)
    driver.add(3, [0] * 30, max_tokens=2)  # 20 of its tokens are the first request's
    steps = [scheduled(driver.step()) for _ in range(3)]
    assert steps == [{0: 20}, {0: 1, 1: 13, 2: 3, 3: 10}, {0: 1, 1: 1, 2: 1, 3: 1}]


def test_budget_bounds_every_step_and_is_used() -> None:
    """No step passes the token budget or max_num_seqs; a step leaves budget only when nobody could use it."""
    rng = random.Random(3)
    driver = Driver(make_core(max_num_batched_tokens=16, max_num_seqs=4, num_blocks=200))
    for request_id in range(30):
        prompt = [rng.randrange(256) for _ in range(rng.randrange(1, 60))]
        driver.add(request_id, prompt, max_tokens=rng.randrange(1, 30))
    while driver.core.has_unfinished_requests():
        waiting_before = driver.core.stats().num_waiting
        running_before = driver.core.stats().num_running
        batch = driver.step()
        assert batch.num_tokens <= 16
        assert batch.num_seqs <= 4
        assert batch.num_tokens == sum(scheduled(batch).values())
        assert batch.max_query_len == max(scheduled(batch).values())
        assert batch.max_seq_len == batch.seq_lens.max()
        may_admit = waiting_before > 0 and running_before < 4
        assert (
            batch.num_tokens == 16 or batch.num_seqs == 4 or not may_admit or batch.num_seqs > running_before
        )
    driver.run()


def test_watermark_keeps_blocks_free_unless_nothing_runs() -> None:
    """Admission leaves the watermark's blocks to outputs that grow; a request alone may take all."""
    driver = Driver(make_core(num_blocks=10, watermark=0.3, enable_prefix_caching=False))
    driver.add(0, [0] * 16, max_tokens=9)  # 4 blocks
    driver.add(1, [1] * 13, max_tokens=9)  # 4 blocks: 2 would stay free
    driver.add(2, [2], max_tokens=1)  # waits behind it
    assert scheduled(driver.step()) == {0: 16}
    assert driver.core.stats().num_waiting == 2
    driver.run()
    driver.add(3, [3] * 40, max_tokens=1)
    assert scheduled(driver.step()) == {3: 40}
    driver.run()


def test_last_admitted_is_preempted_and_comes_back_first() -> None:
    """Without a free block the last admitted request gives its blocks back, and is next to be admitted."""
    driver = Driver(make_core(num_blocks=6, block_size=4))
    for request_id in range(3):
        driver.add(request_id, [request_id] * 8, max_tokens=9, ignore_eos=True)
    driver.add(3, [3], max_tokens=1)
    assert list(scheduled(driver.step())) == [0, 1, 2]  # 2 blocks each: the pool is full
    assert scheduled(driver.step()) == {0: 1, 1: 1}  # both need a third block; request 2 gives its two
    stats = driver.core.stats()
    assert (stats.num_preemptions, stats.num_running, stats.num_waiting) == (1, 2, 2)
    order = []
    while driver.core.has_unfinished_requests():
        order += [i for i in scheduled(driver.step()) if i not in order]
    assert order[:2] == [0, 1]
    assert order.index(2) < order.index(3)
    sequences = driver.run()
    assert all(sequence.released == sequence.sampled for sequence in sequences.values())


def test_preempted_request_finds_its_own_blocks_again() -> None:
    """What a preempted request had computed stays in the cache as long as nobody needs the blocks."""
    driver = Driver(make_core(num_blocks=8, block_size=4, max_num_batched_tokens=64))
    driver.add(0, [0] * 4, max_tokens=3, ignore_eos=True)
    driver.add(1, [1] * 24, max_tokens=5, ignore_eos=True)
    driver.step()  # 1 + 6 blocks of 8
    driver.step()  # 2 + 7: the last one is short of a block
    assert driver.core.stats().num_preemptions == 1
    driver.step()
    assert scheduled(driver.step()) == {1: 1}  # six full blocks found, one token computed
    sequences = driver.run()
    assert len(sequences[1].released) == 5
    assert sequences[1].num_cached_tokens == 0  # told of the first admission


@pytest.mark.parametrize("enable_prefix_caching", [False, True])
def test_everything_finishes_in_a_pool_for_one(enable_prefix_caching: bool) -> None:
    """In a pool that holds one full request all finish, the earliest never held up by later ones."""
    driver = Driver(make_core(num_blocks=32, enable_prefix_caching=enable_prefix_caching, watermark=0.2))
    for request_id in range(8):
        driver.add(request_id, [request_id] * 20, ignore_eos=True)  # up to max_model_len
    finished: list[int] = []
    while driver.core.has_unfinished_requests():
        first = min(i for i in range(8) if i not in finished)
        batch = driver.step()
        assert batch.request_ids[0] == first
        finished += [i for i, s in driver.sequences.items() if s.finish_reason and i not in finished]
    assert finished == sorted(finished)
    assert driver.core.stats().num_preemptions > 0
    assert all(len(sequence.released) == 108 for sequence in driver.sequences.values())
    driver.run()


def test_prefix_is_shared_only_when_computed() -> None:
    """Two equal prompts admitted in one step compute side by side; a later one shares, each block once."""
    driver = Driver(make_core(max_num_batched_tokens=64))
    driver.add(0, [7] * 17, max_tokens=30, ignore_eos=True)
    driver.add(1, [7] * 17, max_tokens=30, ignore_eos=True)
    assert scheduled(driver.step()) == {0: 17, 1: 17}
    free_before = driver.core.stats().num_free_blocks
    driver.add(2, [7] * 17, max_tokens=30, ignore_eos=True)
    assert scheduled(driver.step()) == {0: 1, 1: 1, 2: 1}
    assert driver.core.stats().num_free_blocks == free_before - 1
    sequences = driver.run()
    assert [sequences[i].num_cached_tokens for i in range(3)] == [0, 0, 16]


def test_a_window_gives_blocks_back() -> None:
    """A request holds the blocks of its window and of its step, however long it is, and finds the cached end
    of a prefix whose beginning is gone."""
    settings = {"window": 9, "num_blocks": 33, "max_num_batched_tokens": 6}
    driver = Driver(make_core(**settings))
    prompt = list(range(90))
    driver.add(0, prompt, max_tokens=30, ignore_eos=True)
    most = 0
    while driver.core.has_unfinished_requests():
        driver.step()
        stats = driver.core.stats()
        most = max(most, stats.num_blocks - stats.num_free_blocks)
    assert most <= -(-(9 + 6) // 4) + 1
    # 24 blocks were written since those of the prompt's beginning; its end is there.
    driver.add(1, [*range(200, 232)], max_tokens=1, ignore_eos=True)
    driver.add(2, prompt, max_tokens=1, ignore_eos=True)
    driver.run()
    assert driver.core.stats().prefix_cache_hits == 88
