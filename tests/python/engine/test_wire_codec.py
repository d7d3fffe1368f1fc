"""The codec of wire.h by itself: frames of a bounded size, and no trust in a single byte."""

from __future__ import annotations

import struct
from typing import Any

import _core_parts
import pytest
import wire_client as wire
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.sampling_params import SamplingParams
from wire_format import DEFAULT_PARAMS, NEW_REQUEST, NO_DETAILS, NO_RELEASE, STATS, STEP_FRAME, write


def frames(data: bytes) -> list[bytes]:
    """The payloads of frames that are one behind the other."""
    payloads = []
    while data:
        magic, version, kind, size = struct.unpack_from("<4sHHI", data)
        assert (magic, version, kind) == (wire.MAGIC, wire.VERSION, wire.REQUESTS)
        payloads.append(data[12 : 12 + size])
        data = data[12 + size :]
    return payloads


@pytest.mark.parametrize("max_payload", [0, 300, 1000, 1 << 24])
def test_requests_are_cut_into_frames(max_payload: int) -> None:
    """No frame is over the limit unless it has one addition; all arrive in order, the cancellations last."""
    params = SamplingParams(max_tokens=1).to_core()
    additions = [(i, [7] * length, params) for i, length in enumerate([1, 50, 400, 1, 1, 2, 60])]
    payloads = frames(_core_parts.encode_requests(additions, [3, 4], max_payload))
    counts = [_core_parts.decode_requests(payload) for payload in payloads]
    assert sum(num for num, _ in counts) == len(additions)
    assert [num for _, num in counts] == [0] * (len(counts) - 1) + [2]
    assert all(
        len(p) <= max_payload or num == 1 for p, (num, _) in zip(payloads[:-1], counts[:-1], strict=True)
    )
    assert all(num >= 1 for num, _ in counts)
    # An addition begins with its id.
    assert [struct.unpack_from("<Q", payload, 4)[0] for payload in payloads] == [
        sum(num for num, _ in counts[:i]) for i in range(len(counts))
    ]


def test_cancellations_alone_are_one_frame() -> None:
    """A frame without additions is a frame."""
    (payload,) = frames(_core_parts.encode_requests([], [3], 100))
    assert _core_parts.decode_requests(payload) == (0, 1)


def step(num_logprobs: int = 4, num_prompt_logprobs: int = 2, histogram: int = 0, **changes: Any) -> bytes:
    """A step with two releases, of which the second has logprobs, a stop string and a receipt.

    `changes`: of the second, or of its details.
    """
    first = {"request_id": 1, "num_ids": 1, "num_text_ids": 1, "is_first": True}
    last = {"request_id": 2, "ids_begin": 1, "num_ids": 2, "num_text_ids": 2, "finish_reason": 1}
    details = {
        "stop_string": "end",
        "timing": bytes(range(80)),
        "num_per_id": 2,
        "num_per_prompt_place": 2,
        "cumulative_logprob": -1.5,
        "logprobs": [(i, -0.5, 1) for i in range(num_logprobs)],
        "prompt_logprobs": [(i, -0.5, 1) for i in range(num_prompt_logprobs)],
    }
    details = NO_DETAILS | details | {k: v for k, v in changes.items() if k in NO_DETAILS}
    last |= {"details": details} | {k: v for k, v in changes.items() if k in NO_RELEASE}
    frame = {
        "stats": {name: value for value, name in enumerate(STATS)},
        "releases": [NO_RELEASE | first, NO_RELEASE | last],
        "token_ids": [5, 6, 7],
        "observations": [(0.5, histogram, 3)],
    }
    return write(STEP_FRAME, frame)


def test_a_step_is_read() -> None:
    """The step that the tests below damage is itself a good one."""
    num_releases, _ = _core_parts.decode_step(step())
    assert num_releases == 2


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_per_id": 2**32 - 1},
        {"num_per_id": 22, "num_logprobs": 44},
        {"num_per_prompt_place": 22, "num_prompt_logprobs": 22},
        {"num_per_prompt_place": 0},
        {"num_prompt_logprobs": 3},
        {"num_per_id": 3},
        {"num_logprobs": 5},
        {"num_ids": 1},
        {"num_ids": 3, "num_logprobs": 6},
        {"num_ids": 2**32 - 1},
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int]) -> None:
    """Sizes are refused that do not fit what is there."""
    with pytest.raises(RuntimeError, match=r"^wire: "):
        _core_parts.decode_step(step(**sizes))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_text_ids": 3},
        {"trim": -1},
        {"finish_reason": 0},
        {"finish_reason": 6},
        {"histogram": len(_core_parts.histograms())},
    ],
)
def test_values_that_no_step_has(changes: dict[str, int]) -> None:
    """What a release says of itself is within the frame and fits together; histograms are known ones."""
    with pytest.raises(RuntimeError, match=r"^wire: "):
        _core_parts.decode_step(step(**changes))


def test_a_flag_is_0_or_1() -> None:
    """A flag of another value is refused."""
    request = {
        **dict.fromkeys(NEW_REQUEST, 0),
        "prompt_ids": [1],
        "params": DEFAULT_PARAMS,
        "return_receipt": 2,
    }
    addition = write(NEW_REQUEST | {"return_receipt": "B"}, request)
    with pytest.raises(RuntimeError, match=r"^wire: a flag of 2"):
        _core_parts.decode_requests(wire.requests([addition])[12:])


REQUESTS = wire.requests(
    [
        wire.addition(
            7,
            [1, 2],
            SamplingParams(
                max_tokens=5,
                stop=["a", "bc"],
                stop_token_ids=[1],
                logit_bias=[(1, 0.5)],
                allowed_token_ids=[1],
                cache_salt="s",
            ),
            [[1, 2], [3]],
        )
    ],
    [9],
)[12:]
NUMBERS = st.sampled_from([0, 1, 2, 3, 22, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(
    0, 2**32 - 1
)
EDITS = st.lists(st.tuples(st.integers(0, 10_000), NUMBERS), max_size=4)


@settings(max_examples=examples(2000))
@given(edits=EDITS, end=st.integers(0, 40))
def test_damaged_payloads(edits: list[tuple[int, int]], end: int) -> None:
    """Whatever numbers a payload has, it is read within its bounds or refused as such."""
    for payload, decode in ((step(), _core_parts.decode_step), (REQUESTS, _core_parts.decode_requests)):
        damaged = bytearray(payload)
        for offset, number in edits:
            struct.pack_into("<I", damaged, offset % (len(damaged) - 3), number)
        for given_bytes in (bytes(damaged), bytes(damaged[: len(damaged) - end])):
            message = "wire: "
            try:
                decode(given_bytes)
            except RuntimeError as error:
                message = str(error)
            assert message.startswith("wire: ")
