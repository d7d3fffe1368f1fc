"""A small HTTP client of `generate_stream` that measures: time to first token, gaps between chunks."""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from quire.errors import ServerError


@dataclass(frozen=True, kw_only=True)
class Event:
    """One server-sent event, and when it came."""

    time: float  # seconds, monotonic
    text: str
    num_tokens: int
    finish_reason: str


@dataclass(kw_only=True)
class Result:
    """One request as its client saw it."""

    began: float = 0.0
    events: list[Event] = field(default_factory=list)
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def num_tokens(self) -> int:
        return sum(event.num_tokens for event in self.events)

    @property
    def time_to_first_token(self) -> float:
        return self.events[0].time - self.began

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks."""
        times = [event.time for event in self.events]
        return [after - before for before, after in pairwise(times)]


def stream(host: str, port: int, payload: Mapping[str, Any], model: str = "ensemble") -> Iterator[Event]:
    """The events of one generate_stream request, as they arrive. ServerError: what the server refused."""
    asked = {"stream": True, "return_num_output_tokens": True, "return_finish_reason": True}
    connection = http.client.HTTPConnection(host, port, timeout=300)
    try:
        connection.request(
            "POST",
            f"/v2/models/{model}/generate_stream",
            json.dumps({**payload, **asked}),
            {"Content-Type": "application/json"},
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise ServerError(f"status {answer.status}: {answer.read().decode('utf-8', 'replace')}")
        for line in answer:
            if line.startswith(b"data:"):
                data = json.loads(line[5:])
                if "error" in data:
                    raise ServerError(str(data["error"]))
                yield Event(
                    time=time.monotonic(),
                    text=data["text_output"],
                    num_tokens=int(data["num_output_tokens"]),
                    finish_reason=data["finish_reason"],
                )
    finally:
        connection.close()


def run_load(
    host: str, port: int, payloads: Sequence[Mapping[str, Any]], model: str = "ensemble"
) -> tuple[list[Result], float]:
    """All payloads at once, a connection each. Returns the results in order, and the seconds it took."""
    results = [Result() for _ in payloads]
    gate = threading.Barrier(len(payloads) + 1)

    def work(result: Result, payload: Mapping[str, Any]) -> None:
        gate.wait()
        result.began = time.monotonic()
        try:
            result.events.extend(stream(host, port, payload, model))
        except (OSError, http.client.HTTPException, ServerError) as error:
            result.error = f"{type(error).__name__}: {error}"

    threads = [
        threading.Thread(target=work, args=pair, daemon=True) for pair in zip(results, payloads, strict=True)
    ]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.monotonic()
    for thread in threads:
        thread.join()
    return results, time.monotonic() - began


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
