"""Checks of a server under other conditions: bad requests, clients that leave."""

from __future__ import annotations

import contextlib
import re
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from quire.check_stream.lab import Lab, shorten
from quire.check_stream.outcome import Outcome, Verdict, passed, skipped
from quire.check_stream.protocol import Request, RequestError, Unsupported

# field, value, names that count as naming it
_BAD = (
    ("temperature", -1.0, ("temperature",)),
    ("temperature", "hot", ("temperature",)),
    ("top_p", 7.0, ("top_p",)),
    ("max_tokens", -5, ("max_tokens", "max_new_tokens", "max_completion_tokens", "request_output_len")),
)
_BAD_JSON = ("sampling_parameters", '{"temperature": }', ("sampling_parameters",))
# What shows through when a value was not checked, only used.
_LEAK = re.compile(
    r"TypeError|AttributeError|Traceback|not supported between|unsupported operand|object has no attribute"
    r"|NoneType|must be real number"
)
_BESIDE_TOKENS = 160
_LEFT_TOKENS = 400


def bad_parameter(lab: Lab) -> Outcome:
    verdict = Verdict(lab.adapter)
    for request, names in _bad_requests(lab):
        for stream in (False, True):
            expected = f"a client error (HTTP 4xx) that names {names[0]}"
            with contextlib.suppress(Unsupported):
                seen, is_right = _refused(lab, request, names, stream=stream)
                verdict.case(request, is_right, seen=seen, expected=expected, stream=stream)
    return verdict.outcome("bad values are refused by name", "the model's typed inputs take none of them")


def bad_parameter_beside(lab: Lab) -> Outcome:
    request = replace(lab.long[0].request, max_tokens=_BESIDE_TOKENS)
    try:
        whole = lab.adapter.answer(request).text
        if lab.adapter.answer(request).text != whole:
            return skipped("the server's own answers in one piece differ from each other")
        if lab.adapter.record(request).text != whole:
            return skipped("such a stream differs from the answer in one piece without a bad request too")
    except RequestError as error:
        return skipped(f"{_BESIDE_TOKENS} tokens: {error}")

    began: list[float] = []
    sender = threading.Thread(target=_send_bad, args=(lab, began), daemon=True)
    recording = lab.adapter.record(request, on_first=sender.start)
    if not recording.chunks:
        raise RequestError("the stream ended without a chunk")
    ended = recording.chunks[-1].time
    sender.join(lab.adapter.timeout)
    beside = sum(start < ended for start in began)
    if not beside and recording.text == whole and not recording.error:
        return skipped("the stream ended before a bad request could be sent")
    verdict = Verdict(lab.adapter)
    remark = f"{len(began)} bad requests beside "
    verdict.text(request, recording.text, whole, error=recording.error, remark=remark)
    return verdict.outcome(f"stream was not disturbed by {beside} bad requests beside it", "")


def disconnect(lab: Lab) -> Outcome:
    short = Request(prompt=lab.prompts[0], max_tokens=8)
    before = _median_seconds(lab, short)
    try:
        for index in range(4):
            request = Request(prompt=lab.prompts[index % len(lab.prompts)], max_tokens=_LEFT_TOKENS)
            lab.adapter.record(request, leave_after=1)
    except RequestError as error:
        return skipped(f"{_LEFT_TOKENS} tokens: {error}")
    after = _median_seconds(lab, short)
    seen = f"a short request took {before:.3f} s before and {after:.3f} s after 4 clients left in mid-stream"
    if after > 3 * before + 0.2:
        return skipped(f"informative only: {seen}; their work may go on")
    return passed(seen)


def unchanged_after(lab: Lab) -> Outcome:
    sample = lab.greedy[0]
    verdict = Verdict(lab.adapter)
    verdict.text(sample.request, lab.adapter.answer(sample.request).text, sample.whole.text, stream=False)
    return verdict.outcome("answer is the same as at the beginning", "")


def _bad_requests(lab: Lab) -> Iterator[tuple[Request, tuple[str, ...]]]:
    for name, value, names in (*_BAD, _BAD_JSON) if lab.adapter.reads_sampling_json else _BAD:
        yield Request(prompt=lab.prompts[0], max_tokens=8, extra={name: value}), names


def _refused(lab: Lab, request: Request, names: tuple[str, ...], *, stream: bool) -> tuple[str, bool]:
    """What came back, and whether it is a client error that names the field."""
    try:
        if stream:
            # Accepted without a limit, it might never end.
            later = lab.adapter.record(request, leave_after=4).error
            return f"accepted, then {later}" if later else "accepted", False
        lab.adapter.answer(request)
        return "accepted", False
    except RequestError as error:
        is_named = any(name in f"{error.param} {error.message}".lower() for name in names)
        is_client_error = error.status is None or 400 <= error.status < 500
        is_clean = not _LEAK.search(error.message)
        return shorten(str(error), 300), is_named and is_client_error and is_clean and not error.lost


def _send_bad(lab: Lab, began: list[float]) -> None:
    for request, names in _bad_requests(lab):
        for stream in (False, True):
            with contextlib.suppress(Unsupported):
                lab.adapter.show(request, stream=stream)
                began.append(time.monotonic())
                _refused(lab, request, names, stream=stream)


def _median_seconds(lab: Lab, request: Request) -> float:
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        lab.adapter.answer(request)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)
