"""Checks of many streams at once: alone, and beside a client whose body keeps an HTTP thread busy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import replace

from quire.check_stream.lab import Lab
from quire.check_stream.outcome import Outcome, Verdict, failed, passed, skipped
from quire.check_stream.protocol import Recording, Request, RequestError

_BESIDE_BODY_TOKENS = 160
# Connections that are opened one after the other, in quiet moments, share an HTTP thread of Triton's.
_PAUSE = 0.02


def concurrent(lab: Lab) -> Outcome:
    requests = _requests(lab, 24)
    alone = [lab.adapter.answer(request).text for request in requests]
    return _judge(lab, requests, alone, lab.at_once(requests, stream=True), "at once")


def beside_large_body(lab: Lab) -> Outcome:
    if not lab.body_megabytes:
        return skipped("--body-mb is 0")
    lab.adapter.show(_large(lab, 1), stream=False)  # has the protocol a place for it?
    requests = _requests(lab, _BESIDE_BODY_TOKENS)
    try:
        alone = [lab.adapter.answer(request).text for request in requests]
    except RequestError as error:
        return skipped(f"{_BESIDE_BODY_TOKENS} tokens: {error}")
    have_begun = threading.Semaphore(0)
    sender = threading.Thread(target=_send_body, args=(lab, len(requests), have_begun), daemon=True)
    sender.start()
    results = lab.at_once(requests, stream=True, pause=_PAUSE, on_first=have_begun.release)
    sender.join(lab.adapter.timeout)
    return _judge(lab, requests, alone, results, f"beside a body of {lab.body_megabytes} MB")


def _send_body(lab: Lab, num_streams: int, have_begun: threading.Semaphore) -> None:
    """Once all streams have begun. What the server says of it does not matter."""
    for _ in range(num_streams):
        have_begun.acquire(timeout=lab.adapter.timeout)
    with contextlib.suppress(RequestError):
        lab.adapter.answer(_large(lab, lab.body_megabytes * 1_000_000))


def _large(lab: Lab, num_bytes: int) -> Request:
    return Request(prompt=lab.prompts[0], max_tokens=1, extra={"padding": "a" * num_bytes})


def _requests(lab: Lab, max_tokens: int) -> list[Request]:
    prompts = [sample.request for sample in lab.greedy]
    return [
        replace(prompts[index % len(prompts)], max_tokens=max_tokens + index)
        for index in range(lab.concurrency)
    ]


def _judge(
    lab: Lab, requests: Sequence[Request], alone: Sequence[str], results: Sequence[Recording], how: str
) -> Outcome:
    if all(_is_whole(result, text) for result, text in zip(results, alone, strict=True)):
        return passed(f"{len(requests)} streams {how}, each equal to its own answer in one piece")
    # A greedy answer may depend on what else is in the batch; then a stream cannot be judged.
    crowd = lab.at_once(requests, stream=False)
    verdict = Verdict(lab.adapter)
    for request, text, result, other in zip(requests, alone, results, crowd, strict=True):
        if _is_whole(other, text):
            remark = f"{len(requests)} {how}, this one: "
            verdict.text(request, result.text, text, error=result.error, remark=remark)
    broken = [result.error for result in results if result.error]
    if not verdict.cases and broken:
        seen = f"{len(broken)} streams failed, the first with: {broken[0]}"
        return failed(sent=f"{len(requests)} streams {how}", seen=seen, expected="all of them complete")
    return verdict.outcome(
        f"streams {how} equal their answers in one piece (the others' answers depend on the load)",
        "the server's answers in one piece depend on how many requests run at once",
    )


def _is_whole(recording: Recording, text: str) -> bool:
    return recording.text == text and not recording.error
