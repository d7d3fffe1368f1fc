"""Receipts: the stages add up to the whole, and the counts are those of what was computed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from core_helpers import Driver, make_core
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import _core

STAGES = ("tokenize_ms", "queue_ms", "prefill_ms", "decode_ms", "detokenize_ms")


class Clock:
    """Time that a test sets, in microseconds."""

    def __init__(self) -> None:
        self.us = 5_000_000

    def __call__(self) -> int:
        return self.us * 1000


def receipt_of(driver: Driver, request_id: int, text_us: int) -> dict[str, Any]:
    receipt = driver.sequences[request_id].receipt
    assert receipt is not None
    return dict(json.loads(receipt.to_json(text_us * 1000)))


@pytest.mark.parametrize("max_batches_in_flight", [1, 2])
def test_each_stage_has_its_time(max_batches_in_flight: int) -> None:
    """tokenize | queue | prefill | decode | detokenize, from arrival to the text."""
    clock = Clock()
    driver = Driver(make_core(clock=clock, max_batches_in_flight=max_batches_in_flight))
    arrival = clock()
    clock.us += 2_000 + 1_500  # tokenized for 2 ms, on its way for 1.5
    driver.add(1, [1] * 9, max_tokens=4, arrival_ns=arrival, tokenize_ns=2_000_000, return_receipt=True)
    clock.us += 500
    for _ in range(4):
        driver.launch()
        clock.us += 10_250
        driver.collect()
    receipt = receipt_of(driver, 1, clock.us + 750)
    assert receipt == {
        "tokenize_ms": 2.0,
        "queue_ms": 2.0,
        "prefill_ms": 10.25,
        "decode_ms": 30.75,
        "detokenize_ms": 0.75,
        "total_ms": 45.75,
        "prompt_tokens": 9,
        "output_tokens": 4,
        "cached_tokens": 0,
        "computed_tokens": 12,
        "recomputed_tokens": 0,
        "preemptions": 0,
        "waited_steps": {"rows": 0, "blocks": 0, "token_budget": 0},
    }


def test_only_who_asks_gets_one() -> None:
    """No receipt without return_receipt, and none before the end."""
    driver = Driver(make_core())
    driver.add(1, [1] * 9, max_tokens=3, ignore_eos=True)
    driver.add(2, [2] * 9, max_tokens=3, ignore_eos=True, return_receipt=True)
    driver.step()
    assert driver.sequences[2].receipt is None
    driver.run()
    assert driver.sequences[1].receipt is None
    assert driver.sequences[2].receipt is not None


def test_what_was_found_in_the_cache() -> None:
    """Cached tokens are not computed ones."""
    driver = Driver(make_core())
    driver.add(1, [7] * 33, max_tokens=1)
    driver.run()
    driver.add(2, [7] * 33, max_tokens=1, return_receipt=True)
    driver.run()
    receipt = receipt_of(driver, 2, 10**12)
    assert (receipt["cached_tokens"], receipt["computed_tokens"]) == (32, 1)


def test_preempted_requests_say_what_was_computed_again() -> None:
    """Each token counts as computed once, and as recomputed each further time."""
    driver = Driver(make_core(num_blocks=6, block_size=4, enable_prefix_caching=False))
    for request_id in range(3):
        driver.add(request_id, [request_id] * 8, max_tokens=9, ignore_eos=True, return_receipt=True)
    driver.run()
    receipts = [receipt_of(driver, i, 10**12) for i in range(3)]
    assert [r["preemptions"] for r in receipts] == [0, *([r["preemptions"] for r in receipts[1:]])]
    assert sum(r["preemptions"] for r in receipts) == driver.core.stats().num_preemptions > 0
    assert all(r["computed_tokens"] == 8 + 9 - 1 for r in receipts)
    assert all((r["recomputed_tokens"] > 0) == (r["preemptions"] > 0) for r in receipts)
    assert receipts[2]["waited_steps"]["blocks"] > 0


def test_why_it_waited() -> None:
    """Steps at the queue's head or behind it, by what was missing."""
    driver = Driver(make_core(max_num_seqs=2, max_num_batched_tokens=8, num_blocks=16))
    driver.add(0, [0] * 4, max_tokens=6, ignore_eos=True)
    driver.add(1, [1] * 20, max_tokens=2, ignore_eos=True)
    driver.add(2, [2] * 3, max_tokens=2, ignore_eos=True, return_receipt=True)
    driver.run()
    waited = receipt_of(driver, 2, 10**12)["waited_steps"]
    assert waited == {"rows": 5, "blocks": 0, "token_budget": 0}
    driver = Driver(make_core(max_num_batched_tokens=8))
    driver.add(1, [1] * 20, max_tokens=2, ignore_eos=True)
    driver.add(2, [2] * 3, max_tokens=2, ignore_eos=True, return_receipt=True)
    driver.run()
    assert receipt_of(driver, 2, 10**12)["waited_steps"] == {"rows": 0, "blocks": 0, "token_budget": 2}


@pytest.mark.parametrize("how", ["cancel", "deadline", "refused"])
def test_requests_that_get_nothing_have_one_too(how: str) -> None:
    """Stages that they never reached take no time."""
    clock = Clock()
    driver = Driver(make_core(clock=clock, max_num_seqs=1))
    driver.add(0, [0] * 4, max_tokens=30, ignore_eos=True)
    deadline = clock() + 1_000_000 if how == "deadline" else clock() - 1 if how == "refused" else 0
    driver.add(1, [1] * 4, arrival_ns=clock() - 5000, deadline_ns=deadline, return_receipt=True)
    driver.step()
    clock.us += 2000
    driver.step(cancel=[1] if how == "cancel" else [])
    receipt = receipt_of(driver, 1, clock.us + 10)
    assert receipt["prefill_ms"] == receipt["decode_ms"] == 0
    assert (receipt["computed_tokens"], receipt["output_tokens"]) == (0, 0)
    assert receipt["total_ms"] == pytest.approx(sum(receipt[name] for name in STAGES))
    driver.run()


@settings(max_examples=examples(60))
@given(st.data())
def test_random_life(data: st.DataObject) -> None:
    """Whatever happens: no stage is negative, the sum is exact, and computed tokens are those of the batches
    that ended while the request lived."""
    clock = Clock()
    driver = Driver(
        make_core(
            clock=clock,
            num_blocks=data.draw(st.integers(16, 30), "num_blocks"),
            max_model_len=60,
            max_num_seqs=data.draw(st.integers(1, 5), "max_num_seqs"),
            max_num_batched_tokens=data.draw(st.integers(4, 40), "max_num_batched_tokens"),
            max_batches_in_flight=data.draw(st.sampled_from([1, 2, 3, 5]), "max_batches_in_flight"),
            enable_prefix_caching=data.draw(st.booleans(), "enable_prefix_caching"),
            scheduling_policy=_core.SchedulingPolicy.PRIORITY,
        )
    )
    for _ in range(data.draw(st.integers(1, 30), "steps")):
        for _ in range(data.draw(st.integers(0, 2), "arrivals")):
            request_id = len(driver.sequences)
            driver.add(
                request_id,
                [request_id % 4] * data.draw(st.integers(1, 30), "length"),
                max_tokens=12,
                priority=data.draw(st.integers(0, 2), "priority"),
                arrival_ns=clock() - 3000,
                tokenize_ns=data.draw(st.integers(0, 3000), "tokenize"),
                return_receipt=True,
            )
        driver.launch()
        clock.us += data.draw(st.integers(0, 15), "us")
        live = [i for i, sequence in driver.sequences.items() if not sequence.finish_reason]
        for request_id in data.draw(st.lists(st.sampled_from(live), max_size=1), "cancel") if live else []:
            driver.core.cancel(request_id)
        driver.collect()
    driver.run()
    num_preemptions = 0
    for request_id, sequence in driver.sequences.items():
        receipt = receipt_of(driver, request_id, clock.us + 7)
        assert all(receipt[name] >= 0 for name in STAGES)
        assert round(1000 * receipt["total_ms"]) == sum(round(1000 * receipt[name]) for name in STAGES)
        assert (receipt["recomputed_tokens"] == 0) or receipt["preemptions"] > 0
        num_preemptions += receipt["preemptions"]
        if sequence.finish_reason == "length":
            assert receipt["cached_tokens"] + receipt["computed_tokens"] >= len(sequence.tokens) - 1
            assert receipt["computed_tokens"] <= len(sequence.tokens) - 1 - receipt["cached_tokens"]
    assert num_preemptions == driver.core.stats().num_preemptions
