"""The other end of the engine's socket."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import _core_parts
from quire.sampling_params import SamplingParams
from wire_format import (
    FINISH_REASONS,
    MAGIC,
    NEW_REQUEST,
    NO_DETAILS,
    PARAMS,
    READY,
    READY_FRAME,
    REQUESTS,
    REQUESTS_FRAME,
    START_ERROR,
    STEP,
    STEP_FRAME,
    VERSION,
    frame,
    read,
    write,
)

__all__ = ["MAGIC", "READY", "REQUESTS", "START_ERROR", "STEP", "VERSION", "frame"]


@dataclass
class Release:
    request_id: int
    index: int
    ids: list[int]
    num_text_ids: int
    trim: int
    is_first: bool
    open_text: int
    finish_reason: str
    usage: dict[str, int]
    receipt: bytes | None
    error: str
    stop_reason: str | int | None = None
    logprobs: list[list[tuple[int, float, int]]] | None = None  # of each id; None: not asked for
    prompt_logprobs: list[list[tuple[int, float, int]]] | None = None
    cumulative_logprob: float = 0.0


@dataclass
class Step:
    stats: dict[str, int]
    releases: list[Release]
    observed: list[str] = field(default_factory=list)  # series of histograms, once for each value


@dataclass
class Answer:
    """All that came back for one request."""

    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""


def addition(
    request_id: int,
    prompt_ids: list[int],
    params: SamplingParams,
    bad_word_ids: list[list[int]] = [],  # noqa: B006 (only read)
    **times: int,
) -> bytes:
    """`times`: arrival_ns, tokenize_ns; return_receipt: 0 or 1."""
    given = {name: getattr(params, name, None) for name in PARAMS}
    given["allowed_token_ids"] = params.allowed_token_ids or ()
    given["cache_salt"] = params.cache_salt or ""
    arrival_ns = times.get("arrival_ns", 0)
    request = {
        "request_id": request_id,
        "prompt_ids": prompt_ids,
        "params": given | {"bad_word_ids": bad_word_ids},
        "priority": params.priority,
        "arrival_ns": arrival_ns,
        "tokenize_ns": times.get("tokenize_ns", 0),
        "deadline_ns": arrival_ns + params.deadline_ms * 10**6 if params.deadline_ms else 0,
        "return_receipt": times.get("return_receipt", 0),
    }
    return write(NEW_REQUEST, request)


def requests(additions: list[bytes] = [], cancellations: list[int] = []) -> bytes:  # noqa: B006 (only read)
    """One kRequests frame."""
    payload = struct.pack("<I", len(additions)) + b"".join(additions)
    return frame(REQUESTS, payload + write(REQUESTS_FRAME["cancellations"], cancellations))


class Client:
    """Reads frames from a socket and remembers what each request was answered."""

    def __init__(self, connection: socket.socket, timeout: float = 60.0) -> None:
        self.connection = connection
        connection.settimeout(timeout)
        self.answers: dict[int, Answer] = {}
        self.steps: list[Step] = []

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def add(self, request_id: int, prompt_ids: list[int], **params: object) -> None:
        self.send(requests([addition(request_id, prompt_ids, SamplingParams(**params))]))  # type: ignore[arg-type]

    def cancel(self, request_id: int) -> None:
        self.send(requests([], [request_id]))

    def read_frame(self) -> tuple[int, bytes]:
        """The next frame's type and payload. Raises EOFError when the engine is gone."""
        magic, version, kind, size = struct.unpack("<4sHHI", self._read(12))
        assert (magic, version) == (MAGIC, VERSION)
        return kind, self._read(size)

    def read_step(self) -> Step:
        kind, payload = self.read_frame()
        assert kind == STEP
        step = decode_step(payload)
        self.steps.append(step)
        for release in step.releases:
            answer = self.answers.setdefault(release.request_id, Answer())
            assert answer.finish_reason == "", "nothing may follow the end"
            answer.ids += release.ids
            answer.finish_reason = release.finish_reason
            answer.error = release.error
        return step

    def finish(self, *request_ids: int) -> list[Answer]:
        """Read until these requests have ended."""
        while not all(self.answers.get(i, Answer()).finish_reason for i in request_ids):
            self.read_step()
        return [self.answers[i] for i in request_ids]

    def read_rest(self) -> bytes:
        """What is left until the engine closes the connection."""
        data = bytearray()
        while part := self.connection.recv(4096):
            data += part
        return bytes(data)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


def decode_step(payload: bytes) -> Step:
    step = read(STEP_FRAME, payload)
    histograms = _core_parts.histograms()
    observed = [histograms[number] for _, number, count in step["observations"] for _ in range(count)]
    return Step(step["stats"], [_release(step, given) for given in step["releases"]], observed)


def _release(step: dict[str, Any], given: dict[str, Any]) -> Release:
    begin, num_ids = given["ids_begin"], given["num_ids"]
    details = given["details"] or NO_DETAILS
    release = Release(
        given["request_id"],
        given["index"],
        step["token_ids"][begin : begin + num_ids],
        given["num_text_ids"],
        given["trim"],
        given["is_first"],
        given["open_text"],
        FINISH_REASONS[given["finish_reason"]],
        given["usage"],
        details["timing"],
        details["error"],
        details["stop_token_id"] if details["stop_token_id"] >= 0 else None,
        _places(details["logprobs"], details["num_per_id"]),
        _places(details["prompt_logprobs"], details["num_per_prompt_place"]),
        details["cumulative_logprob"],
    )
    if details["stop_string"]:
        release.stop_reason = details["stop_string"]
    return release


def _places(entries: list[tuple[int, ...]], size: int) -> list[list[tuple[int, float, int]]] | None:
    return [entries[i : i + size] for i in range(0, len(entries), size)] if size else None


def decode_ready(payload: bytes) -> dict[str, Any]:
    ready: dict[str, Any] = read(READY_FRAME, payload)
    return ready
