"""Several batches in flight: the same ids as with one, whatever ends, leaves, waits or fails meanwhile."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from core_helpers import Driver, Key, Sequence, id_and_index, make_core
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import _core
from step_settings import SETTINGS

EOS = [250, 251, 252, 253, 254]


@dataclass
class Workload:
    """Requests by id, and when they arrive: after so many steps."""

    requests: list[tuple[int, list[int], dict[str, object]]] = field(default_factory=list)

    @classmethod
    def random(cls, rng: random.Random, count: int) -> Workload:
        """Requests that share prefixes, and end by every rule."""
        stem = [rng.randrange(250) for _ in range(40)]
        requests = []
        for _ in range(count):
            prompt = stem[: rng.randrange(41)] + [rng.randrange(250) for _ in range(rng.randrange(1, 20))]
            min_tokens = rng.choice([0, 0, 3, 10])
            params: dict[str, object] = {
                "max_tokens": max(rng.choice([0, 1, 2, 5, 20, 40]), min_tokens),
                "min_tokens": min_tokens,
                "ignore_eos": rng.random() < 0.3,
                "stop": rng.choice([[], [], ["a"], ["Q", "zz", "0"], ["x", "\n"]]),
                "stop_token_ids": rng.choice([[], [7], [1, 2, 3, 4, 5]]),
                "include_stop_str_in_output": rng.random() < 0.5,
            }
            requests.append((rng.randrange(30), prompt, params))
        return cls(requests)

    def run(self, core: _core.EngineCore, cancels: dict[int, int] | None = None) -> Driver:
        """All requests to their ends; `cancels`: request -> step."""
        driver = Driver(core)
        for step in range(31 if cancels is None else max([31, *cancels.values()])):
            for request_id, (arrival, prompt, params) in enumerate(self.requests):
                if arrival == step:
                    driver.add(request_id, prompt, **params)
            driver.step([i for i, at in (cancels or {}).items() if at == step and i in driver.sequences])
        driver.run()
        assert core.num_batches_in_flight() == 0
        return driver


def answer(sequence: Sequence) -> tuple[list[int], bytes, str]:
    return sequence.released, sequence.text, sequence.finish_reason


slow = pytest.mark.slow
in_flight = pytest.mark.parametrize(
    ("seed", "num_in_flight"),
    [(0, 2), pytest.param(1, 2, marks=slow), (2, 3), pytest.param(3, 5, marks=slow)],
)


@pytest.mark.parametrize("name", SETTINGS)
@in_flight
def test_ids_do_not_depend_on_batches_in_flight(name: str, seed: int, num_in_flight: int) -> None:
    """Every request has the same ids, text and end with one batch in flight and with more."""
    workload = Workload.random(random.Random(seed), 24)
    values = {"eos_token_ids": EOS} | SETTINGS[name]
    one = workload.run(make_core(**values))
    more = workload.run(make_core(**values, max_batches_in_flight=num_in_flight))
    if "preemption" in name:
        assert more.core.stats().num_preemptions > 0
    reasons = set()
    for request_id in range(len(workload.requests)):
        assert answer(one.sequences[request_id]) == answer(more.sequences[request_id])
        reasons.add(one.sequences[request_id].finish_reason)
    assert reasons == {"stop", "length"}
    assert one.core.stats().num_generation_tokens == more.core.stats().num_generation_tokens


@pytest.mark.parametrize("name", ["prefix caching", "preemption in small chunks", "block of one"])
@in_flight
def test_cancels_change_nobody_else(name: str, seed: int, num_in_flight: int) -> None:
    """A cancelled request has the first of its ids, and all others theirs."""
    rng = random.Random(100 + seed)
    workload = Workload.random(rng, 24)
    values = {"eos_token_ids": EOS} | SETTINGS[name]
    expected = workload.run(make_core(**values)).sequences
    cancels = {request_id: rng.randrange(60) for request_id in rng.sample(range(24), 12)}
    core = make_core(**values, max_batches_in_flight=num_in_flight)
    given = workload.run(core, cancels).sequences
    for request_id, sequence in given.items():
        if sequence.finish_reason == "cancelled":
            assert request_id in cancels
            assert sequence.released == expected[request_id].released[: len(sequence.released)]
        else:
            assert answer(expected[request_id]) == answer(sequence)


@settings(max_examples=examples(80))
@given(st.data())
def test_random_life(data: st.DataObject) -> None:
    """Arrivals, cancellations, batches that go out, end, or fail, in any order: every id is right, and all
    blocks are free at last."""
    block_size = data.draw(st.integers(1, 8), "block_size")
    num_needed = -(-60 // block_size)
    core = make_core(
        block_size=block_size,
        num_blocks=1 + data.draw(st.integers(num_needed, 3 * num_needed), "num_blocks"),
        window=data.draw(st.sampled_from([0, 0, 1, 5, 17, 60]), "window"),
        max_model_len=60,
        max_num_seqs=data.draw(st.integers(1, 6), "max_num_seqs"),
        max_num_batched_tokens=data.draw(st.integers(1, 40), "max_num_batched_tokens"),
        watermark=data.draw(st.sampled_from([0.0, 0.01, 0.3]), "watermark"),
        enable_prefix_caching=data.draw(st.booleans(), "enable_prefix_caching"),
        eos_token_ids=list(range(16)),
        max_batches_in_flight=data.draw(st.sampled_from([1, 2, 3, 5]), "max_batches_in_flight"),
    )
    driver = Driver(core)
    cancelled: set[Key] = set()
    # Each thing that happens is drawn from a list in which what keeps the engine going is most frequent.
    events = ["launch", "launch", "launch", "collect", "collect", "add", "cancel", "fail"]
    for event in data.draw(st.lists(st.sampled_from(events), max_size=60), "events"):
        live = [key for key, sequence in driver.sequences.items() if not sequence.finish_reason]
        if event == "launch" and core.num_batches_in_flight() < core.config.max_batches_in_flight:
            driver.launch()
        elif event == "collect":
            driver.collect()
        elif event == "add":
            stem = list(range(100, 100 + data.draw(st.integers(0, 30), "stem")))
            tail = data.draw(st.lists(st.integers(16, 255), min_size=1, max_size=20), "tail")
            max_tokens = data.draw(st.integers(0, 30), "max_tokens")
            n = data.draw(st.sampled_from([1, 1, 1, 2, 3, 8]), "n")
            driver.add(len(driver.params), stem + tail, max_tokens=max_tokens, n=n)
        elif event == "cancel" and live:
            request_id, _ = id_and_index(data.draw(st.sampled_from(live), "cancel"))
            cancelled |= {key for key in live if id_and_index(key)[0] == request_id}
            core.cancel(request_id)
            core.check_integrity()
        elif event == "fail":
            driver.forget(data.draw(st.booleans(), "has_run"))
    driver.run()
    for key, sequence in driver.sequences.items():
        assert (key in cancelled) == (sequence.finish_reason == "cancelled")
        expected: list[int] = []
        while len(expected) < len(sequence.released):
            expected.append(driver.model.next_token(sequence.prompt + expected, index=sequence.index))
        assert expected == sequence.released
        if key not in cancelled:
            wanted = 60 - len(sequence.prompt)
            wanted = min(driver.params[id_and_index(key)[0]].max_tokens or wanted, wanted)
            assert len(expected) == wanted or expected[-1] < 16
            assert all(token >= 16 for token in expected[:-1])


def test_next_step_is_scheduled_before_the_ids_are_known() -> None:
    """The second batch names the row of the id that it does not know; a third must wait."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1, 2, 3], _core.SamplingParams(max_tokens=5))
    core.add_request(2, [4], _core.SamplingParams(max_tokens=5))
    first = core.schedule()
    assert first.token_ids.tolist() == [1, 2, 3, 4]
    rows = first.sample_rows.tolist()
    second = core.schedule()
    assert core.num_batches_in_flight() == 2
    assert second.token_ids.tolist() == [~row for row in rows]
    assert second.positions.tolist() == [3, 1]
    assert second.output_idx.tolist() == [1, 1]
    with pytest.raises(
        _core.InvalidArgument, match="schedule: got 2 batches in flight; allowed: fewer than max_b"
    ):
        core.schedule()
    assert first.token_ids.tolist() == [1, 2, 3, 4], "valid until its own update()"
    core.update(np.array([10, 20], dtype=np.int32))
    assert core.schedule().token_ids.tolist() == [~row for row in rows]
    core.update(np.array([11, 21], dtype=np.int32))
    core.update(np.array([12, 22], dtype=np.int32))
    assert core.schedule().token_ids.tolist() == [12, 22]


def test_no_more_tokens_than_asked_are_scheduled() -> None:
    """A request whose last id is on its way is not scheduled; its end comes with that id."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1, 2, 3], _core.SamplingParams(max_tokens=2))
    core.schedule()
    core.schedule()
    core.update(np.array([10], dtype=np.int32))
    assert core.schedule().num_tokens == 0
    assert core.num_batches_in_flight() == 1
    [release] = core.update(np.array([11], dtype=np.int32)).releases
    assert (release.token_ids, release.finish_reason) == ([11], "length")
    with pytest.raises(_core.InvalidArgument, match="sampled: got ids; allowed: one update"):
        core.update(np.array([], dtype=np.int32))


@pytest.mark.parametrize("end", ["stop", "cancelled", "error"])
def test_an_end_drops_what_is_out(end: str) -> None:
    """The blocks are free at once, the id of the batch still in flight is ignored, and the core has work
    until that batch has ended."""
    core = make_core(max_batches_in_flight=2, eos_token_ids=[9])
    core.add_request(1, [1, 2, 3, 4, 5], _core.SamplingParams(max_tokens=50))
    core.schedule()
    assert core.schedule().num_sampled == 1
    if end == "cancelled":
        core.cancel(1)
    first = core.update(np.array([{"stop": 9, "cancelled": 6, "error": -1}[end]], dtype=np.int32))
    assert [release.finish_reason for release in first.releases] == [end]
    stats = core.stats()
    assert (stats.num_running, stats.num_free_blocks) == (0, stats.num_blocks)
    core.check_integrity()
    assert core.has_unfinished_requests()
    assert core.schedule().num_tokens == 0
    assert len(core.update(np.array([7], dtype=np.int32))) == 0
    assert not core.has_unfinished_requests()
    assert core.stats().num_generation_tokens == (1 if end == "stop" else 0)


@pytest.mark.parametrize("token", [5, 9, -1])
def test_the_id_of_a_preempted_request_is_not_lost(token: int) -> None:
    """It arrives while the request waits; the request goes on from it, or ends with it."""
    core = make_core(num_blocks=4, block_size=4, max_model_len=17, max_batches_in_flight=2, eos_token_ids=[9])
    core.add_request(1, [1] * 7, _core.SamplingParams(max_tokens=9))
    core.add_request(2, [2] * 8, _core.SamplingParams(max_tokens=9))
    core.schedule()  # two blocks each: the pool is full
    second = core.schedule()  # request 2 needs a third block
    assert second.request_ids.tolist() == [1]
    stats = core.stats()
    assert (stats.num_preemptions, stats.num_running, stats.num_waiting) == (1, 1, 1)
    releases = {
        release.request_id: release for release in core.update(np.array([3, token], np.int32)).releases
    }
    core.check_integrity()
    if token == 5:
        assert (releases[2].token_ids, releases[2].finish_reason) == ([5], "")
        core.cancel(1)
        again = core.schedule()
        assert again.request_ids.tolist() == [2]
        assert again.token_ids.tolist()[-1] == 5
        assert again.output_idx.tolist() == [1]
    else:
        assert releases[2].finish_reason == ("stop" if token == 9 else "error")
        assert core.stats().num_waiting == 0


def test_a_preempted_request_waits_for_its_id() -> None:
    """It is not admitted before, even with room for it: nobody knows the token to go on from."""
    core = make_core(num_blocks=4, block_size=4, max_model_len=17, max_batches_in_flight=2)
    core.add_request(1, [1] * 7, _core.SamplingParams(max_tokens=1))
    core.add_request(2, [2] * 8, _core.SamplingParams(max_tokens=9))
    core.schedule()  # two blocks each: the pool is full, and request 1 has all it asked for
    for _ in range(2):
        assert core.schedule().num_tokens == 0
        core.check_integrity()
    assert core.stats().num_preemptions == 1
    assert core.stats().num_free_blocks == 2
    first, second = core.update(np.array([3, 4], dtype=np.int32)).releases
    assert (first.token_ids, first.finish_reason) == ([3], "length")
    assert (second.token_ids, second.finish_reason) == ([4], "")
    assert core.schedule().token_ids.tolist() == [2] * 8 + [4]


@pytest.mark.parametrize("has_run", [False, True])
def test_what_a_forgotten_batch_computed_is_not_found(has_run: bool) -> None:
    """A prompt's second chunk fails: only the first one's blocks are shared."""
    driver = Driver(make_core(max_num_batched_tokens=8, max_batches_in_flight=2))
    driver.add(1, list(range(20)), max_tokens=5)
    driver.launch()
    driver.launch()
    driver.collect()
    driver.forget(has_run)
    driver.core.cancel(1)
    driver.add(2, list(range(20)), max_tokens=5)
    sequences = driver.run()
    assert sequences[2].num_cached_tokens == 8
    assert sequences[2].released == sequences[2].sampled[:5]


def test_forgotten_batches_come_again() -> None:
    """Both batches are taken back, and the tables are told once more, whole."""
    core = make_core(max_batches_in_flight=2)
    core.add_request(1, [1] * 9, _core.SamplingParams(max_tokens=9))
    first = core.schedule()
    updates = first.block_table_updates.tolist()
    assert len(updates) == 3
    core.schedule()
    core.forget_batches()
    assert core.num_batches_in_flight() == 0
    core.check_integrity()
    again = core.schedule()
    assert again.token_ids.tolist() == [1] * 9
    assert again.block_table_updates.tolist() == updates
    assert core.schedule().block_table_updates.tolist() == []


def test_table_updates_of_a_decode_are_few() -> None:
    """Only a request that begins a block changes the table."""
    sizes = {"num_blocks": 200, "max_num_seqs": 16, "block_size": 16, "max_num_batched_tokens": 256}
    driver = Driver(make_core(**sizes, max_batches_in_flight=2))
    for request_id in range(16):
        driver.add(request_id, [request_id] * (1 + request_id), ignore_eos=True)
    while driver.core.stats().num_generation_tokens < 16:
        driver.step()
    assert [len(driver.step().block_table_updates) for _ in range(64)] == [1] * 64
    driver.run()
