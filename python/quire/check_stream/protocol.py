"""What a server is asked and what it answers, whatever its protocol."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quire.errors import QuireError


class CheckStreamError(QuireError):
    """The checker itself cannot go on: no server there, no such model, a wrong option."""


class RequestError(QuireError):
    """The server refused a request, or did not end it in time. `status`: of HTTP; None where there is none
    (gRPC, an error inside a stream, a lost connection). `param`: the field that the answer names apart."""

    def __init__(
        self, message: str, *, status: int | None = None, param: str = "", lost: bool = False
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.lost = lost  # the connection or the wait for it ended, not the request

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.message}" if self.status else self.message


class Unsupported(Exception):  # noqa: N818 - says what the protocol lacks
    """The protocol or the model's declared inputs have no place for what the request asks."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request in vLLM's vocabulary; greedy unless told otherwise."""

    prompt: str
    max_tokens: int = 48
    temperature: float = 0.0
    seed: int | None = None
    stop: str | None = None
    include_stop: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)  # more sampling fields, wrong ones too

    def sampling(self) -> dict[str, Any]:
        """The request as the JSON object that vLLM and its relatives read."""
        values = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop": None if self.stop is None else [self.stop],
            "include_stop_str_in_output": self.include_stop or None,
        }
        return {name: value for name, value in values.items() if value is not None} | dict(self.extra)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer in one piece. None: the server does not offer it."""

    text: str = ""
    finish_reason: str | None = None
    num_input_tokens: int | None = None
    num_output_tokens: int | None = None
    num_total_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk(Reply):
    """One event of a stream; its counts are its own. finish_reason "": offered, not yet."""

    time: float = field(default_factory=time.monotonic)  # seconds
    purpose: str = ""  # why it may be without text: "role", "reasoning", "usage"


@dataclass(kw_only=True)
class Recording:
    """A stream as it was received."""

    began: float = field(default_factory=time.monotonic)
    chunks: list[Chunk] = field(default_factory=list)
    usage: Reply | None = None  # the counts that OpenAI's last event carries; text is ""
    num_done: int = 0  # [DONE] events
    error: str = ""  # what ended it before its time

    @property
    def has_begun(self) -> bool:
        """Not where it failed before its first chunk."""
        return bool(self.chunks) or not self.error

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def finish_reasons(self) -> list[str]:
        return [chunk.finish_reason for chunk in self.chunks if chunk.finish_reason]

    @property
    def output_counts(self) -> list[int]:
        return [chunk.num_output_tokens for chunk in self.chunks if chunk.num_output_tokens is not None]

    @property
    def num_output_tokens(self) -> int | None:
        if self.usage is not None:
            return self.usage.num_output_tokens
        return sum(self.output_counts) if self.output_counts else None

    @property
    def num_input_tokens(self) -> int | None:
        parts = self.chunks if self.usage is None else [self.usage]
        counts = [part.num_input_tokens for part in parts if part.num_input_tokens is not None]
        return counts[-1] if counts else None


class Adapter(abc.ABC):
    """Speaks one protocol with one model. Safe to use from several threads: a connection per request."""

    api: str
    model: str
    timeout: float

    has_finish_reason = True
    ends_with_done = False  # [DONE] after the last event
    # Triton's vLLM backend, Quire: an input with JSON holds vLLM's sampling fields, all of them. Others have
    # fewer, and inputs with a type, which no value of another gets into.
    reads_sampling_json = False

    @abc.abstractmethod
    def answer(self, request: Request) -> Reply:
        """In one piece. Raises RequestError, Unsupported."""

    @abc.abstractmethod
    def events(self, request: Request, recording: Recording) -> Iterator[Chunk]:
        """The stream, event by event; closing the iterator disconnects. Raises RequestError, Unsupported.
        What is not a chunk goes straight into the recording."""

    @abc.abstractmethod
    def show(self, request: Request, *, stream: bool) -> str:
        """What `request` looks like on the wire, for the report."""

    def record(
        self, request: Request, leave_after: int | None = None, on_first: Callable[[], None] = lambda: None
    ) -> Recording:
        """The whole stream, or its first `leave_after` chunks. RequestError only where no chunk came.
        `on_first` is called at the first one."""
        recording = Recording()
        events = self.events(request, recording)
        try:
            for chunk in events:
                recording.chunks.append(chunk)
                if len(recording.chunks) == 1:
                    on_first()
                if len(recording.chunks) == leave_after:
                    break
                if time.monotonic() - recording.began > self.timeout:
                    raise RequestError(f"the stream did not end within {self.timeout:g} s", lost=True)
        except RequestError as error:
            if not recording.chunks:
                raise
            recording.error = str(error)
        finally:
            events.close()  # type: ignore[attr-defined]
        return recording
