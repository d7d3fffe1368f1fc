"""Deadlines: the request ends when its time has come, in every stage, and its blocks are free then."""

from __future__ import annotations

import pytest
from core_helpers import Driver, make_core
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import _core

MS = 1_000_000


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.ms = 1000

    def __call__(self) -> int:
        return self.ms * MS

    def in_ms(self, ms: int) -> int:
        return (self.ms + ms) * MS


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_driver(clock: Clock, **settings: object) -> Driver:
    return Driver(make_core(clock=clock, **settings))


def test_passed_at_intake(clock: Clock) -> None:
    """Refused at once: nothing is scheduled for it."""
    driver = make_driver(clock)
    clock.ms += 30
    driver.add(1, [1] * 9, arrival_ns=1000 * MS, deadline_ns=1020 * MS)
    assert driver.core.stats().num_waiting == 0
    driver.step()
    assert driver.sequences[1].finish_reason == "deadline"
    assert (
        driver.sequences[1].error
        == "deadline exceeded: 20 ms (deadline_ms) passed before the request's turn came"
    )
    driver.run()


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_while_it_waits(clock: Clock, max_batches_in_flight: int) -> None:
    """Behind a request that has the only row; a place in the queue is all that it gives up."""
    driver = make_driver(clock, max_num_seqs=1, max_batches_in_flight=max_batches_in_flight)
    driver.add(0, [0] * 5, max_tokens=30, ignore_eos=True)
    driver.add(1, [1] * 5, deadline_ns=clock.in_ms(10))
    driver.add(2, [2] * 5, max_tokens=1)
    driver.step()
    clock.ms += 9
    driver.step()
    assert driver.sequences[1].finish_reason == ""
    clock.ms += 1
    driver.step()
    assert driver.sequences[1].finish_reason == "deadline"
    assert driver.core.stats().num_waiting == 1
    sequences = driver.run()
    assert (sequences[0].finish_reason, sequences[2].finish_reason) == ("length", "length")


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_between_the_chunks_of_its_prompt(clock: Clock, max_batches_in_flight: int) -> None:
    """Its blocks are free in the step that finds the deadline passed, even where batches still write them."""
    driver = make_driver(clock, max_num_batched_tokens=8, max_batches_in_flight=max_batches_in_flight)
    driver.add(1, [1] * 60, deadline_ns=clock.in_ms(10))
    for _ in range(max_batches_in_flight):
        driver.launch()
    free_before = driver.core.stats().num_free_blocks
    clock.ms += 10
    driver.collect()
    assert driver.sequences[1].finish_reason == "deadline"
    assert driver.sequences[1].error == "deadline exceeded: 10 ms (deadline_ms) passed before the first token"
    assert driver.core.stats().num_free_blocks == free_before + 15
    assert driver.core.stats().num_running == 0
    driver.run()


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_while_it_generates(clock: Clock, max_batches_in_flight: int) -> None:
    """It ends with what it has; an id that comes after the deadline is not part of it."""
    driver = make_driver(clock, max_batches_in_flight=max_batches_in_flight)
    driver.add(1, [1] * 9, max_tokens=50, ignore_eos=True, deadline_ns=clock.in_ms(10))
    driver.add(2, [2] * 9, max_tokens=50, ignore_eos=True)
    for _ in range(4):
        driver.step()
    assert len(driver.sequences[1].released) == 4
    driver.launch()
    clock.ms += 11
    driver.collect()
    sequence = driver.sequences[1]
    assert (sequence.finish_reason, sequence.error) == ("deadline", "")
    assert sequence.released == sequence.sampled[:4]
    assert driver.core.stats().num_running == 1
    assert driver.run()[2].finish_reason == "length"


def test_it_is_noticed_before_a_step_starts(clock: Clock) -> None:
    """schedule() gives no work to a request whose time has come."""
    driver = make_driver(clock)
    driver.add(1, [1] * 9, max_tokens=50, ignore_eos=True, deadline_ns=clock.in_ms(10))
    driver.step()
    clock.ms += 10
    assert driver.core.schedule().num_tokens == 0
    assert driver.core.stats().num_free_blocks == driver.core.stats().num_blocks
    driver.run()
    assert driver.sequences[1].finish_reason == "deadline"


def test_held_text_leaves_with_the_end(clock: Clock) -> None:
    """What might have become a stop string is text after all."""
    driver = make_driver(clock)
    driver.model.next_token = lambda *_: ord("a")  # type: ignore[method-assign]
    driver.add(1, [1], max_tokens=50, stop=["aaaaaaaab"], deadline_ns=clock.in_ms(10))
    for _ in range(3):
        driver.step()
    assert driver.sequences[1].text == b""
    clock.ms += 10
    driver.step()
    assert (driver.sequences[1].text, driver.sequences[1].finish_reason) == (b"aaa", "deadline")


def test_preempted_and_waiting_again(clock: Clock) -> None:
    """A deadline finds a request that gave its blocks back, with its text so far."""
    driver = make_driver(clock, num_blocks=6)
    for request_id in range(3):
        deadline = {"deadline_ns": clock.in_ms(10)} if request_id == 2 else {}
        driver.add(request_id, [request_id] * 8, max_tokens=9, ignore_eos=True, **deadline)
    driver.step()
    driver.step()
    assert driver.core.stats().num_preemptions == 1
    clock.ms += 10
    driver.step()
    assert driver.sequences[2].finish_reason == "deadline"
    assert len(driver.sequences[2].released) == 1
    driver.run()


def test_an_end_before_the_deadline_is_the_end(clock: Clock) -> None:
    """Finished and cancelled requests leave no deadline behind; their ids can be used again."""
    driver = make_driver(clock)
    driver.add(1, [1], max_tokens=1, deadline_ns=clock.in_ms(10))
    driver.add(2, [2], max_tokens=9, deadline_ns=clock.in_ms(10))
    driver.step(cancel=[2])
    assert [driver.sequences[i].finish_reason for i in (1, 2)] == ["length", "cancelled"]
    driver.core.add_request(1, [1], _core.SamplingParams(max_tokens=2))
    clock.ms += 20
    driver.core.schedule()
    assert driver.core.stats().num_running == 1


def run_full_steps(driver: Driver, clock: Clock, count: int, ms: int) -> None:
    """Steps of a full token budget (64) that take `ms` each."""
    for i in range(count):
        request_id = 1000 + len(driver.sequences) + i
        driver.add(request_id, [request_id % 251] * 64, max_tokens=1)
        driver.launch()
        clock.ms += ms
        driver.collect()


def test_no_estimate_before_the_rate_is_known(clock: Clock) -> None:
    """A few slow steps at the start say nothing, and small steps never do."""
    driver = make_driver(clock, enable_prefix_caching=False)
    run_full_steps(driver, clock, 7, 1000)
    for request_id in range(20):
        driver.add(request_id, [1], max_tokens=1)
        driver.launch()
        clock.ms += 1000
        driver.collect()
    driver.add(100, [1] * 100, deadline_ns=clock.in_ms(1))
    assert driver.core.stats().num_waiting == 1


def test_refused_when_the_prompt_surely_takes_longer(clock: Clock) -> None:
    """The bound is half of what the fastest step says: 100 tokens at 64 in 64 ms take at least 50 ms."""
    driver = make_driver(clock, enable_prefix_caching=False)
    run_full_steps(driver, clock, 4, 500)
    run_full_steps(driver, clock, 4, 64)
    driver.add(1, [1] * 100, deadline_ns=clock.in_ms(49), arrival_ns=clock())
    driver.take(driver.core.take_outputs())
    assert driver.sequences[1].finish_reason == "deadline"
    assert driver.sequences[1].error == (
        "deadline exceeded: 49 ms (deadline_ms) cannot be met: 49 ms are left, and the prompt's next 100 "
        "tokens take at least 50 ms"
    )
    driver.add(2, [1] * 100, max_tokens=1, deadline_ns=clock.in_ms(51))
    driver.step()
    driver.step()
    assert driver.sequences[2].finish_reason == "length"


def test_it_ends_as_soon_as_it_cannot_be_met_any_more(clock: Clock) -> None:
    """In the queue, or between two chunks: the rest of a prompt that comes too late is not computed."""
    driver = make_driver(clock, enable_prefix_caching=False, max_num_seqs=1)
    run_full_steps(driver, clock, 8, 64)
    driver.add(0, [0] * 4, max_tokens=90, ignore_eos=True)
    driver.add(1, [1] * 100, deadline_ns=clock.in_ms(100))
    driver.step()
    clock.ms += 49
    driver.step()
    assert driver.sequences[1].finish_reason == ""
    clock.ms += 2
    driver.step()
    assert driver.sequences[1].finish_reason == "deadline"
    driver.core.cancel(0)
    driver.add(2, [2] * 100, deadline_ns=clock.in_ms(60))
    driver.step()  # 64 tokens; the other 36 take at least 18 ms
    clock.ms += 41
    driver.step()
    assert driver.sequences[2].finish_reason == ""
    driver.add(3, [3] * 120, deadline_ns=clock.in_ms(70))
    driver.core.cancel(2)
    driver.step()
    clock.ms += 43
    driver.step()
    assert driver.sequences[3].finish_reason == "deadline"
    driver.run()


def test_tokens_in_the_cache_take_no_time(clock: Clock) -> None:
    """The estimate counts what is not cached now."""
    driver = make_driver(clock)
    run_full_steps(driver, clock, 8, 64)
    driver.add(1, [1] * 100, max_tokens=1)
    driver.run()
    driver.add(2, [1] * 100, max_tokens=1, deadline_ns=clock.in_ms(5))
    driver.step()
    assert driver.sequences[2].finish_reason == "length"


@settings(max_examples=examples(60))
@given(st.data())
def test_random_life(data: st.DataObject) -> None:
    """Random deadlines and step times: nobody outlives his deadline by more than the step in which it
    passes, nobody is ended early who has a token, and every other answer is whole."""
    clock = Clock()
    driver = make_driver(
        clock,
        num_blocks=data.draw(st.integers(20, 40), "num_blocks"),
        max_model_len=60,
        max_num_seqs=data.draw(st.integers(1, 5), "max_num_seqs"),
        max_num_batched_tokens=data.draw(st.integers(4, 40), "max_num_batched_tokens"),
        max_batches_in_flight=data.draw(st.sampled_from([1, 2, 3, 5]), "max_batches_in_flight"),
        scheduling_policy=_core.SchedulingPolicy.PRIORITY,
    )
    deadlines: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 30), "steps")):
        for _ in range(data.draw(st.integers(0, 2), "arrivals")):
            request_id = len(driver.sequences)
            fields = {"max_tokens": 12, "priority": data.draw(st.integers(0, 2), "priority")}
            if data.draw(st.booleans(), "has deadline"):
                deadlines[request_id] = clock.in_ms(data.draw(st.integers(1, 60), "deadline"))
                fields["deadline_ns"] = deadlines[request_id]
            prompt = [request_id % 4] * data.draw(st.integers(1, 30), "length")
            driver.add(request_id, prompt, **fields)
        driver.launch()
        clock.ms += data.draw(st.integers(0, 15), "ms")
        driver.collect()
        for request_id, deadline in deadlines.items():
            sequence = driver.sequences[request_id]
            assert sequence.finish_reason or deadline > clock()
            if sequence.finish_reason == "deadline" and deadline > clock():
                assert not sequence.released
            assert (sequence.error != "") == (sequence.finish_reason == "deadline" and not sequence.released)
    deadlines.clear()
    driver.run()
    for sequence in driver.sequences.values():
        assert sequence.finish_reason in ("length", "deadline")
        if sequence.finish_reason == "length":
            assert sequence.released == sequence.sampled
