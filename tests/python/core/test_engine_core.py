"""EngineCore with a fake model: same tokens however steps are made up, finish rules, refusals, cancelling."""

from __future__ import annotations

import random

import numpy as np
import pytest
from core_helpers import Driver, make_core, word_table
from quire import _core
from step_settings import SETTINGS


def random_requests(rng: random.Random, count: int) -> list[tuple[list[int], dict[str, object]]]:
    """Requests that share prefixes of many lengths."""
    stem = [rng.randrange(256) for _ in range(40)]
    requests = []
    for _ in range(count):
        prompt = stem[: rng.randrange(41)] + [rng.randrange(256) for _ in range(rng.randrange(1, 20))]
        requests.append((prompt, {"max_tokens": rng.randrange(1, 40), "ignore_eos": True}))
    return requests


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_tokens_do_not_depend_on_how_steps_are_made_up(name: str, seed: int) -> None:
    """Each request gets the tokens it gets alone, whatever its batch mates, chunks, hits and preemptions."""
    requests = random_requests(random.Random(seed), 16)
    driver = Driver(make_core(**SETTINGS[name]))
    for request_id, (prompt, params) in enumerate(requests):
        driver.add(request_id, prompt, **params)
    sequences = driver.run()
    if "preemption" in name:
        assert driver.core.stats().num_preemptions > 0
    for request_id, (prompt, params) in enumerate(requests):
        expected: list[int] = []
        for _ in range(params["max_tokens"]):
            expected.append(driver.model.next_token(prompt + expected))
        assert expected == sequences[request_id].released
        assert sequences[request_id].finish_reason == "length"


def test_same_prompt_again_is_found_in_the_cache_but_for_its_last_block() -> None:
    """At least one token of a prompt is computed, and only full blocks are shared."""
    driver = Driver(make_core())
    for request_id, (size, cached) in enumerate([(12, 0), (12, 8), (13, 12), (11, 8), (4, 0), (5, 4)]):
        driver.add(request_id, list(range(size)), max_tokens=1)
        driver.run()
        assert cached == driver.sequences[request_id].num_cached_tokens
    stats = driver.core.stats()
    assert stats.prefix_cache_queries == 12 + 12 + 13 + 11 + 4 + 5
    assert stats.prefix_cache_hits == 0 + 8 + 12 + 8 + 0 + 4
    assert stats.num_computed_prompt_tokens == stats.prefix_cache_queries - stats.prefix_cache_hits
    assert stats.num_generation_tokens == 6


def test_running_request_shares_its_blocks() -> None:
    """A prefix is shared while the request that computed it still runs, outputs included."""
    driver = Driver(make_core(num_blocks=20))
    driver.add(0, list(range(16)), max_tokens=20)
    for _ in range(10):
        driver.step()
    free_before = driver.core.stats().num_free_blocks
    driver.add(1, driver.sequences[0].tokens[:25], max_tokens=2)
    driver.step()
    assert free_before - 1 == driver.core.stats().num_free_blocks
    driver.run()
    assert driver.sequences[1].num_cached_tokens == 24


@pytest.mark.parametrize(
    ("field", "prompt", "params"),
    [
        ("prompt_ids", [], {}),
        ("prompt_ids", [1] * 128, {}),
        ("prompt_ids", [1, 256], {}),
        ("prompt_ids", [-1], {}),
        ("max_tokens", [1], {"max_tokens": -1}),
        ("min_tokens", [1], {"min_tokens": -1}),
        ("min_tokens", [1], {"min_tokens": 5, "max_tokens": 4}),
        ("temperature", [1], {"temperature": -0.1}),
        ("temperature", [1], {"temperature": 2.1}),
        ("temperature", [1], {"temperature": float("nan")}),
        ("top_p", [1], {"top_p": 0.0}),
        ("top_p", [1], {"top_p": 1.5}),
        ("top_k", [1], {"top_k": -2}),
        ("stop", [1], {"stop": ["a", ""]}),
        ("stop", [1], {"stop": [b"\xff"]}),
        ("stop", [1], {"stop": ["a"] * 257}),
        ("stop", [1], {"stop": ["a" * 1025]}),
        ("stop", [1], {"stop": ["a" * 1024] * 17}),
        ("bad_words", [1], {"bad_word_ids": [[1] * 2049]}),
        ("allowed_token_ids", [1], {"allowed_token_ids": [1] * 257}),
        ("stop_token_ids", [1], {"stop_token_ids": [256]}),
        ("stop_token_ids", [1], {"stop_token_ids": [1] * 241}),
        ("request_id", [1], {}),
    ],
)
def test_bad_request_is_refused_by_field(field: str, prompt: list[int], params: dict[str, object]) -> None:
    """A refusal names the field, the given and the allowed; the engine goes on as if nothing came."""
    driver = Driver(make_core())
    driver.add(7, [1, 2, 3], max_tokens=3)
    before = driver.core.stats()
    with pytest.raises(_core.InvalidArgument, match=rf"^{field}: got .*; allowed: ") as error:
        driver.core.add_request(7 if field == "request_id" else 8, prompt, _core.SamplingParams(**params))
    assert field == error.value.field
    assert isinstance(error.value, ValueError)
    assert before.num_waiting == driver.core.stats().num_waiting
    driver.run()
    assert driver.sequences[7].finish_reason == "length"


def test_request_that_never_fits_is_refused_and_the_largest_that_fits_runs() -> None:
    """The pool's size bounds prompt + max_tokens; the last token needs no KV."""
    driver = Driver(make_core(num_blocks=5))  # 20 slots
    with pytest.raises(_core.InvalidArgument, match="prompt_ids: got 21 tokens; allowed: 1 to 20 tokens"):
        driver.add(0, [1] * 21)
    with pytest.raises(_core.InvalidArgument, match="max_tokens: got 12; allowed: at most 11"):
        driver.add(0, [1] * 10, max_tokens=12)
    driver.add(0, [1] * 10, max_tokens=11)
    driver.add(1, [2] * 20)
    driver.add(2, [3])
    sequences = driver.run()
    assert [len(sequences[i].released) for i in range(3)] == [11, 1, 20]
    assert {"length"} == {sequences[i].finish_reason for i in range(3)}


def test_a_limit_of_output_tokens_holds_for_all() -> None:
    """A request without max_tokens gets the limit where it fits into the context; more is refused."""
    driver = Driver(make_core(max_model_len=32, max_output_tokens=10))
    for field in ("max_tokens", "min_tokens"):
        with pytest.raises(
            _core.InvalidArgument, match=rf"{field}: got 11; allowed: at most 10 \(max_output_tokens"
        ):
            driver.add(0, [1], **{field: 11})
    driver.add(0, [1] * 5)
    driver.add(1, [2] * 30)
    driver.add(2, [3], max_tokens=10)
    sequences = driver.run()
    assert [len(sequences[i].released) for i in range(3)] == [10, 2, 10]


def next_ids(core: _core.EngineCore, ids: list[int]) -> list[_core.Release]:
    """One step in which the model samples `ids`."""
    batch = core.schedule()
    assert len(ids) == batch.num_sampled
    return core.update(np.array(ids, dtype=np.int32)).releases


def generate(core: _core.EngineCore, ids: list[int], **params: object) -> tuple[list[int], str, str]:
    """Feeds ids until the request ends: released ids, text, finish reason."""
    core.add_request(1, [0], _core.SamplingParams(**params))
    released: list[int] = []
    text = ""
    for token in ids:
        for release in next_ids(core, [token]):
            released += release.token_ids
            text += core.token_table.decode(
                release.token_ids[: release.num_text_ids], release.is_first, release.trim
            )
            if release.finish_reason:
                return released, text, release.finish_reason
    raise AssertionError(f"still running after {ids}")


@pytest.mark.parametrize(
    ("params", "ids", "released", "text", "reason"),
    [
        ({}, [5, 6, 9], [5, 6, 9], " w5 w6", "stop"),
        ({"include_stop_str_in_output": True}, [5, 6, 9], [5, 6, 9], " w5 w6 w9", "stop"),
        ({"ignore_eos": True, "max_tokens": 3}, [5, 9, 6], [5, 9, 6], " w5 w9 w6", "length"),
        ({"stop_token_ids": [6, 4]}, [5, 4], [5, 4], " w5", "stop"),
        ({"stop_token_ids": [6], "ignore_eos": True}, [9, 6], [9, 6], " w9", "stop"),
        ({"max_tokens": 2}, [5, 9], [5, 9], " w5", "stop"),
        ({"max_tokens": 2, "stop": ["w6"]}, [5, 6], [5, 6], " w5 ", "stop"),
        ({"stop": ["5 w"]}, [4, 5, 6], [4, 5, 6], " w4 w", "stop"),
        ({"stop": ["5 w"], "include_stop_str_in_output": True}, [4, 5, 6], [4, 5, 6], " w4 w5 w", "stop"),
        ({"stop": ["w5"], "min_tokens": 2}, [5, 5, 5], [5, 5, 5], " w5 w5 ", "stop"),
        ({}, [1] * 15, [1] * 15, " w1" * 15, "length"),  # max_model_len
    ],
)
def test_finish_rules(
    params: dict[str, object], ids: list[int], released: list[int], text: str, reason: str
) -> None:
    """Each rule ends a request at its token, with the ids so far, the text it carries, and its reason."""
    core = make_core(word_table(10), vocab_size=10, eos_token_ids=[9], max_model_len=16)
    assert (released, text, reason) == generate(core, ids, **params)
    assert not core.has_unfinished_requests()


def test_min_tokens_masks_ends_until_enough_tokens_are_there() -> None:
    """Eos and stop ids are masked for the first min_tokens tokens, and only for requests that ask for it."""
    core = make_core(word_table(10), vocab_size=10, eos_token_ids=[9])
    core.add_request(1, [0], _core.SamplingParams(min_tokens=2, stop_token_ids=[3, 9]))
    core.add_request(2, [0], _core.SamplingParams())
    for expected in ([[0, ~(1 << 3 | 1 << 9)]], [], []):
        batch = core.schedule()
        assert batch.mask_updates.tolist() == expected
        assert batch.mask_rows.tolist() == [0 if core.stats().step < 2 else -1, -1]
        core.update(np.array([1, 1], dtype=np.int32))


def test_sampling_values_reach_the_batch() -> None:
    """Each sampled row carries its request's values; top_k -1 is off; a seed is drawn when none is given."""

    def seeds_of(seed: int) -> list[int]:
        core = make_core(seed=seed)
        core.add_request(1, [0], _core.SamplingParams(temperature=0.5, top_p=0.25, top_k=-1, seed=-1))
        core.add_request(2, [0], _core.SamplingParams(temperature=0, top_k=3))
        core.add_request(3, [0], _core.SamplingParams())
        batch = core.schedule()
        assert batch.temperature.tolist() == [0.5, 0.0, 1.0]
        assert batch.top_p.tolist() == [0.25, 1.0, 1.0]
        assert batch.top_k.tolist() == [0, 3, 0]
        return batch.seed.tolist()

    first = seeds_of(0)
    assert first[0] == 2**64 - 1
    assert first[1] != first[2]
    assert first == seeds_of(0)
    assert first != seeds_of(1)


def test_a_tiny_temperature_is_greedy() -> None:
    """Below 1e-5, as in vLLM: the likeliest token is taken, and min_p asks for nothing."""
    core = make_core()
    for index, temperature in enumerate((9e-6, 1e-5, 1e-30)):
        core.add_request(index, [0], _core.SamplingParams(temperature=temperature))
    assert [0.0, np.float32(1e-5), 0.0] == core.schedule().temperature.tolist()
    core = make_core()
    core.add_request(1, [0], _core.SamplingParams(temperature=9e-6, min_p=0.5))
    assert not core.schedule().has_adjustments


def test_a_cleared_core_is_as_new() -> None:
    """clear() takes out requests that wait, run, share a prompt, are in batches in flight, or have ended
    without anybody having read it."""
    core = make_core(max_batches_in_flight=2, max_num_seqs=3)
    for index in range(4):
        params = _core.SamplingParams(n=2 if index == 1 else 1)
        core.add_request(index, [index + 1] * 40, params, deadline_ns=2**62 if index == 2 else 0)
    core.schedule()
    core.schedule()
    core.cancel(0)
    core.clear()
    core.check_integrity()
    assert not core.has_unfinished_requests()
    assert 0 == core.num_batches_in_flight() == len(core.take_outputs())
    stats = core.stats()
    assert (0, 0, stats.num_blocks) == (stats.num_running, stats.num_waiting, stats.num_free_blocks)
    core.add_request(0, [1, 2], _core.SamplingParams())
    assert [0] == core.schedule().request_ids.tolist()
    core.clear()
    core.clear()


def test_cancel_frees_blocks_at_once_and_reports_once() -> None:
    """Waiting, running, scheduled requests can be cancelled; each end is told once."""
    driver = Driver(make_core(max_num_seqs=2))
    for request_id in range(4):
        driver.add(request_id, [request_id] * 9, max_tokens=50)
    driver.step()
    assert driver.core.stats().num_waiting == 2
    driver.core.cancel(3)
    driver.core.cancel(99)
    assert driver.core.stats().num_waiting == 1
    free_before = driver.core.stats().num_free_blocks
    driver.core.cancel(0)
    assert free_before + 3 == driver.core.stats().num_free_blocks
    driver.core.check_integrity()
    driver.take(driver.core.take_outputs())
    assert len(driver.core.take_outputs()) == 0
    assert [driver.sequences[i].finish_reason for i in range(4)] == ["cancelled", "", "", "cancelled"]
    driver.step(cancel=[1])
    assert driver.sequences[1].finish_reason == "cancelled"
    assert driver.sequences[1].released == driver.sequences[1].sampled[:-1]
    driver.step(cancel=[2])
    assert not driver.core.has_unfinished_requests()
    driver.run()


def test_fail_ends_a_request_with_its_message() -> None:
    """fail() ends a live request, and reports one that never got in."""
    core = make_core()
    core.add_request(1, [1, 2], _core.SamplingParams())
    core.fail(1, "model: broken")
    core.fail(2, "top_p: got 7; allowed: (0, 1]")
    assert core.has_unfinished_requests()
    ends = core.take_outputs().releases
    assert [(end.request_id, end.finish_reason, end.error) for end in ends] == [
        (1, "error", "model: broken"),
        (2, "error", "top_p: got 7; allowed: (0, 1]"),
    ]
    assert not core.has_unfinished_requests()


def test_batch_that_is_forgotten_comes_again() -> None:
    """After a failed model run the same tokens are scheduled again, and nothing is lost."""
    driver = Driver(make_core(max_num_batched_tokens=10))
    for request_id in range(3):
        driver.add(request_id, list(range(request_id, 12)), max_tokens=5)
    while driver.core.has_unfinished_requests():
        first = driver.core.schedule()
        before = (first.request_ids.tolist(), first.positions.tolist(), first.slot_mapping.tolist())
        driver.core.forget_batches()
        again = driver.core.schedule()
        assert before == (again.request_ids.tolist(), again.positions.tolist(), again.slot_mapping.tolist())
        driver.forget(has_run=True)
        driver.step()
    driver.run()


def test_update_refuses_ids_that_do_not_fit_the_batch() -> None:
    """Wrong count, range, type, or a second update() change nothing."""
    core = make_core()
    core.add_request(1, [1, 2], _core.SamplingParams())
    with pytest.raises(_core.InvalidArgument, match="sampled: got ids; allowed: one update"):
        core.update(np.array([], dtype=np.int32))
    core.schedule()
    for ids in ([], [1, 2], [256], [-2]):
        with pytest.raises(_core.InvalidArgument, match="sampled: got"):
            core.update(np.array(ids, dtype=np.int32))
    for wrong in (np.array([1], dtype=np.int64), np.array([[1]], dtype=np.int32)):
        with pytest.raises(_core.InvalidArgument, match="sampled: got"):
            core.update(wrong)
    assert [release.token_ids for release in core.update(np.array([5], dtype=np.int32)).releases] == [[5]]


def test_batch_arrays_are_views_that_keep_the_core_alive() -> None:
    """Arrays are read-only, without a copy, and usable after the core's name is gone."""
    core = make_core()
    core.add_request(1, [1, 2, 3], _core.SamplingParams())
    batch = core.schedule()
    tokens = batch.token_ids
    assert not tokens.flags.writeable
    assert not tokens.flags.owndata
    assert tokens.ctypes.data == batch.token_ids.ctypes.data
    assert batch.block_tables.shape == (8, 32)
    del core, batch
    assert tokens.tolist() == [1, 2, 3]


def test_a_request_without_a_finite_logit_ends_alone() -> None:
    """Id -1 ends its request with an error; its batch mate goes on and no block stays behind."""
    core = make_core()
    params = _core.SamplingParams(temperature=0.0, max_tokens=3)
    for request_id in (1, 2):
        core.add_request(request_id, [10 * request_id, 5, 6, 7, 8], params)
    core.schedule()
    releases = {release.request_id: release for release in core.update(np.array([-1, 65], np.int32)).releases}
    assert releases[1].finish_reason == "error"
    assert "not finite" in releases[1].error
    assert releases[2].token_ids == [65]
    core.check_integrity()
    for _ in range(2):
        core.schedule()
        outputs = core.update(np.array([65], np.int32))
    assert [release.finish_reason for release in outputs.releases] == ["length"]
    assert core.stats().num_free_blocks == core.stats().num_blocks
    core.check_integrity()
