"""Policy `priority`: who goes first, who gives way, and that nothing else changes."""

from __future__ import annotations

import pytest
from core_helpers import Driver, make_core
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import _core

PRIORITY = _core.SchedulingPolicy.PRIORITY


def make_driver(**settings: object) -> Driver:
    return Driver(make_core(**({"scheduling_policy": PRIORITY} | settings)))


def scheduled(batch: _core.Batch) -> dict[int, int]:
    """Request id -> tokens in this step, in the batch's order."""
    sizes = batch.query_start_loc[1:] - batch.query_start_loc[:-1]
    return dict(zip(batch.request_ids.tolist(), sizes.tolist(), strict=True))


def test_fcfs_refuses_a_priority() -> None:
    """The error names the setting that allows it; priority 0 is what everybody has."""
    core = make_core()
    with pytest.raises(_core.InvalidArgument, match=r'priority: got -3; allowed: 0, unless .*"priority"'):
        core.add_request(1, [1], _core.SamplingParams(), priority=-3)
    assert not core.has_unfinished_requests()
    core.add_request(1, [1], _core.SamplingParams(), priority=0)


def test_the_queue_is_by_priority_then_arrival() -> None:
    """One row: requests are admitted in the order of (priority, arrival)."""
    driver = make_driver(max_num_seqs=1)
    for request_id, priority in enumerate([0, 5, -1, 5, 0, 2**31 - 1, -(2**31), 0]):
        driver.add(request_id, [request_id] * 3, max_tokens=2, priority=priority)
    order: list[int] = []
    while driver.core.has_unfinished_requests():
        order += [i for i in scheduled(driver.step()) if i not in order]
    assert order == [6, 2, 0, 4, 7, 1, 3, 5]
    assert driver.core.stats().num_preemptions == 0


def test_a_better_one_takes_the_worst_one_s_row() -> None:
    """Rows are full: the worst running one makes room, those that are as good as the new one stay."""
    driver = make_driver(max_num_seqs=3)
    for request_id, priority in enumerate([1, 2, 2]):
        driver.add(request_id, [request_id] * 5, max_tokens=20, priority=priority, ignore_eos=True)
    assert list(scheduled(driver.step())) == [0, 1, 2]
    driver.add(3, [3] * 5, max_tokens=20, priority=2)
    assert list(scheduled(driver.step())) == [0, 1, 2]  # as good as the worst: it waits
    driver.add(4, [4] * 5, max_tokens=20, priority=0)
    assert scheduled(driver.step()) == {4: 5, 0: 1, 1: 1}  # 2 came last of the worst
    assert driver.core.stats().num_preemptions == 1
    driver.add(5, [5] * 5, max_tokens=20, priority=-1)
    driver.add(6, [6] * 5, max_tokens=20, priority=-1)
    assert list(scheduled(driver.step())) == [5, 6, 4]
    assert driver.core.stats().num_preemptions == 3
    sequences = driver.run()
    assert all(sequence.released == sequence.sampled for sequence in sequences.values())
    assert all(len(sequence.released) == 20 for sequence in sequences.values())


def test_a_better_one_takes_blocks_from_the_worst() -> None:
    """As many as are missing, and no more: who holds nothing that helps goes on."""
    driver = make_driver(num_blocks=10, enable_prefix_caching=False)
    for request_id, priority in enumerate([1, 2, 3]):
        driver.add(request_id, [request_id] * 11, max_tokens=5, priority=priority)  # 3 blocks each
    driver.step()
    driver.add(3, [3] * 13, max_tokens=4, priority=0)  # 4 blocks; one is free
    assert list(scheduled(driver.step())) == [3, 0, 1]
    assert driver.core.stats().num_preemptions == 1
    driver.run()


def test_nobody_is_pushed_out_in_vain() -> None:
    """Where all the worse ones together do not hold what is missing, they go on."""
    driver = make_driver(num_blocks=10, enable_prefix_caching=False)
    driver.add(0, [0] * 23, max_tokens=10, priority=0)  # 6 blocks
    driver.add(1, [1] * 7, max_tokens=4, priority=9)  # 2 blocks
    driver.step()
    driver.add(2, [2] * 19, max_tokens=4, priority=1)  # 5 blocks; 2 + 2 could be had
    assert list(scheduled(driver.step())) == [0, 1]
    assert driver.core.stats().num_preemptions == 0
    driver.run()


def test_a_better_prompt_takes_the_tokens_of_a_step_first() -> None:
    """A long prompt of worse priority does not hold up a better one that came later."""
    driver = make_driver(max_num_batched_tokens=8)
    driver.add(0, [0] * 40, max_tokens=5, priority=1)
    assert scheduled(driver.step()) == {0: 8}
    driver.add(1, [1] * 12, max_tokens=3, priority=0)
    assert scheduled(driver.step()) == {1: 8}
    assert scheduled(driver.step()) == {1: 4, 0: 4}
    assert scheduled(driver.step()) == {1: 1, 0: 7}
    driver.run()


def test_growing_outputs_take_from_the_worst() -> None:
    """Without a free block the worst running request gives way, however early it came."""
    driver = make_driver(num_blocks=6, enable_prefix_caching=False)
    driver.add(0, [0] * 8, max_tokens=9, priority=7, ignore_eos=True)
    driver.add(1, [1] * 8, max_tokens=9, priority=1, ignore_eos=True)
    driver.add(2, [2] * 8, max_tokens=9, priority=1, ignore_eos=True)
    driver.step()
    assert scheduled(driver.step()) == {1: 1, 2: 1}
    driver.run()


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_preempted_for_a_better_one_with_its_token_out(max_batches_in_flight: int) -> None:
    """The id that a batch in flight samples for the victim is kept, and its text goes on from there."""
    driver = make_driver(max_num_seqs=1, max_batches_in_flight=max_batches_in_flight)
    driver.add(0, [7] * 9, max_tokens=12, priority=1, ignore_eos=True)
    driver.launch()
    if max_batches_in_flight == 1:
        driver.collect()
    driver.add(1, [8] * 9, max_tokens=3, priority=0, ignore_eos=True)
    driver.launch()
    sequences = driver.run()
    assert driver.core.stats().num_preemptions == 1
    assert [len(sequence.released) for sequence in sequences.values()] == [12, 3]
    assert all(sequence.released == sequence.sampled for sequence in sequences.values())


def test_equal_priorities_change_nothing() -> None:
    """With one priority for all, every batch is that of fcfs."""
    plain, ranked = Driver(make_core(num_blocks=20, watermark=0.1)), make_driver(num_blocks=20, watermark=0.1)
    for request_id in range(12):
        prompt = [request_id % 3] * (5 + 3 * request_id % 17)
        plain.add(request_id, prompt, max_tokens=15)
        ranked.add(request_id, prompt, max_tokens=15, priority=4)
    while plain.core.has_unfinished_requests():
        assert scheduled(plain.step()) == scheduled(ranked.step())
    assert not ranked.core.has_unfinished_requests()
    assert plain.core.stats().num_preemptions > 0


@settings(max_examples=examples(60))
@given(st.data())
def test_random_life(data: st.DataObject) -> None:
    """Random priorities, arrivals, cancellations, batches in flight: every slot is right, every answer is
    that of the request alone, and no batch leaves out a request for a worse one that fits in its place."""
    config = {
        "block_size": data.draw(st.integers(1, 6), "block_size"),
        "num_blocks": data.draw(st.integers(60, 90), "num_blocks"),
        "max_model_len": 60,
        "max_num_seqs": data.draw(st.integers(1, 5), "max_num_seqs"),
        "max_num_batched_tokens": data.draw(st.integers(1, 40), "max_num_batched_tokens"),
        "max_batches_in_flight": data.draw(st.sampled_from([1, 2, 3, 5]), "max_batches_in_flight"),
        "watermark": data.draw(st.sampled_from([0.0, 0.2]), "watermark"),
        "enable_prefix_caching": data.draw(st.booleans(), "enable_prefix_caching"),
    }
    config["num_blocks"] = -(-config["num_blocks"] // config["block_size"])
    driver = make_driver(**config)
    priorities: dict[int, int] = {}
    cancelled: set[int] = set()
    for _ in range(data.draw(st.integers(1, 25), "steps")):
        for _ in range(data.draw(st.integers(0, 2), "arrivals")):
            request_id = len(driver.sequences)
            priorities[request_id] = data.draw(st.integers(0, 3), "priority")
            prompt = [request_id % 4] * data.draw(st.integers(1, 30), "length")
            driver.add(request_id, prompt, max_tokens=20, priority=priorities[request_id])
        live = [i for i, sequence in driver.sequences.items() if not sequence.finish_reason]
        gone = data.draw(st.lists(st.sampled_from(live), max_size=1), "cancel") if live else []
        cancelled.update(gone)
        batch = driver.step(cancel=gone)
        order = [priorities[i] for i in scheduled(batch)]
        assert order == sorted(order)
    driver.run()
    for request_id, sequence in driver.sequences.items():
        assert (request_id in cancelled) == (sequence.finish_reason == "cancelled")
        if request_id not in cancelled:
            assert sequence.released == sequence.sampled
