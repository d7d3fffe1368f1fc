"""n > 1 together with priority, deadlines and receipts."""

from __future__ import annotations

import json
from typing import Any

from core_helpers import Driver, key_of, make_core
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import _core

PRIORITY = _core.SchedulingPolicy.PRIORITY


def receipt_of(driver: Driver, request_id: int, index: int) -> dict[str, Any]:
    receipt = driver.sequences[key_of(request_id, index)].receipt
    assert receipt is not None
    return dict(json.loads(receipt.to_json(10**18)))


def test_each_sequence_has_a_receipt() -> None:
    """The first one computed the prompt, the others found it there."""
    driver = Driver(make_core(enable_prefix_caching=False))
    driver.add(1, [1] * 10, n=3, max_tokens=4, ignore_eos=True, return_receipt=True)
    driver.run()
    receipts = [receipt_of(driver, 1, index) for index in range(3)]
    assert [r["computed_tokens"] for r in receipts] == [13, 4, 4]
    assert [r["cached_tokens"] for r in receipts] == [0, 9, 9]
    assert [r["output_tokens"] for r in receipts] == [4, 4, 4]


def test_a_deadline_ends_all_sequences() -> None:
    """Those with text keep it; there is no error where any has some."""
    now = [1000]
    driver = Driver(make_core(clock=lambda: now[0], max_num_seqs=2))
    driver.add(1, [1] * 10, n=3, max_tokens=20, ignore_eos=True, deadline_ns=2000)
    for _ in range(4):
        driver.step()
    now[0] = 2000
    driver.step()
    ends = [driver.sequences[key_of(1, index)] for index in range(3)]
    assert [end.finish_reason for end in ends] == ["deadline"] * 3
    assert [bool(end.released) for end in ends] == [True, True, False]
    assert [end.error for end in ends] == ["", "", ""]
    driver.run()


def test_a_better_request_with_siblings_pushes_worse_ones_out() -> None:
    """Each of its sequences takes a row as soon as the prompt is there."""
    driver = Driver(make_core(max_num_seqs=2, scheduling_policy=PRIORITY))
    for request_id in range(2):
        driver.add(request_id, [request_id] * 5, max_tokens=20, priority=3, ignore_eos=True)
    driver.step()
    driver.add(2, [2] * 5, n=2, max_tokens=6, priority=1, ignore_eos=True)
    driver.step()
    assert driver.step().request_ids.tolist() == [2, 2]
    sequences = driver.run()
    assert all(sequence.released == sequence.sampled for sequence in sequences.values())


@settings(max_examples=examples(60))
@given(st.data())
def test_random_life(data: st.DataObject) -> None:
    """Random n, priorities, deadlines, cancellations: every slot is right, every block is free at last."""
    now = [0]
    driver = Driver(
        make_core(
            clock=lambda: now[0],
            num_blocks=data.draw(st.integers(16, 40), "num_blocks"),
            max_model_len=60,
            max_num_seqs=data.draw(st.integers(1, 6), "max_num_seqs"),
            max_num_batched_tokens=data.draw(st.integers(4, 40), "max_num_batched_tokens"),
            max_batches_in_flight=data.draw(st.sampled_from([1, 2, 3, 5]), "max_batches_in_flight"),
            enable_prefix_caching=data.draw(st.booleans(), "enable_prefix_caching"),
            watermark=data.draw(st.sampled_from([0.0, 0.2]), "watermark"),
            scheduling_policy=PRIORITY,
        )
    )
    num_requests = 0
    for _ in range(data.draw(st.integers(1, 25), "steps")):
        now[0] += data.draw(st.integers(1, 10), "time")
        for _ in range(data.draw(st.integers(0, 2), "arrivals")):
            has_deadline = data.draw(st.booleans(), "has deadline")
            driver.add(
                num_requests,
                [num_requests % 4] * data.draw(st.integers(1, 30), "length"),
                n=data.draw(st.integers(1, 4), "n"),
                max_tokens=12,
                priority=data.draw(st.integers(0, 2), "priority"),
                deadline_ns=now[0] + data.draw(st.integers(1, 99), "deadline") if has_deadline else 0,
                return_receipt=True,
            )
            num_requests += 1
        if num_requests and data.draw(st.integers(0, 9), "cancel") == 0:
            driver.step(cancel=[data.draw(st.integers(0, num_requests - 1), "who")])
        else:
            driver.step()
    driver.run()
    for sequence in driver.sequences.values():
        assert sequence.receipt is not None
        assert sequence.finish_reason in ("length", "cancelled", "deadline")
        if sequence.finish_reason == "length":
            assert sequence.released == sequence.sampled
