"""HTTP as the adapters need it: JSON in, JSON or server-sent events out, each event as it arrives."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from quire.check_stream.protocol import CheckStreamError, RequestError


@dataclass(frozen=True, kw_only=True)
class HttpClient:
    """One server; every request on a connection of its own."""

    base: str  # scheme://host:port/prefix, no slash at the end
    timeout: float
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that GET gives, or with a `body` POST."""
        with self._answer(path, body) as answer:
            return parse(_utf8(answer.read()))

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """The data of each server-sent event. Closing the iterator closes the connection."""
        with self._answer(path, body) as answer:
            kind = answer.headers.get_content_type()
            if kind != "text/event-stream":
                text = _utf8(answer.read())
                refusal = _refusal(text)  # an error that came before the first event
                problem = f"got Content-Type {kind}; expected text/event-stream: {text[:200]}"
                raise refusal or RequestError(problem)
            data: list[str] = []
            for line in answer:
                line = line.rstrip(b"\r\n")
                if line.startswith(b"data:"):
                    data.append(_utf8(line[5:].removeprefix(b" ")))
                elif not line and data:
                    yield "\n".join(data)
                    data = []
            if data:
                yield "\n".join(data)

    @contextlib.contextmanager
    def _answer(self, path: str, body: Mapping[str, Any] | None) -> Iterator[http.client.HTTPResponse]:
        """The head of an answer with status 200; leaving closes answer and connection."""
        parts = urlsplit(self.base)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        if not parts.hostname:
            raise CheckStreamError(f"URL: got {self.base!r}; allowed: http://HOST:PORT")
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        headers = {"Content-Type": "application/json", **self.headers}
        with contextlib.closing(kind(parts.hostname, parts.port, timeout=self.timeout)) as connection:
            try:
                connection.request(method, parts.path + path, data, headers)
                with connection.getresponse() as answer:
                    if answer.status != 200:
                        text = _utf8(answer.read())
                        raise _refusal(text, answer.status) or RequestError(text)
                    yield answer
            except (OSError, http.client.HTTPException) as error:
                raise RequestError(f"connection: {type(error).__name__}: {error}", lost=True) from error


def parse(text: str) -> Any:
    """The JSON value of an answer or an event. Raises RequestError where it is none, or an error: Triton
    answers some errors with HTTP 200."""
    if refusal := _refusal(text):
        raise refusal
    try:
        return json.loads(text)
    except ValueError:
        raise RequestError(f"the answer is no JSON: {text[:200]!r}") from None


def parse_object(text: str) -> dict[str, Any]:
    value = parse(text)
    if not isinstance(value, dict):
        raise RequestError(f"the answer is no JSON object: {text[:200]!r}")
    return value


def _refusal(text: str, status: int | None = None) -> RequestError | None:
    """The error that an answer holds; always one where `status` says so."""
    value = None
    with contextlib.suppress(ValueError):
        value = json.loads(text)
    answer = value if isinstance(value, dict) else {}
    error = answer.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        status = code if status is None and isinstance(code, int) else status
        message, param = str(error.get("message", error)), str(error.get("param") or "")
        return RequestError(message, status=status, param=param)
    if error is None and status is not None:
        error = answer.get("detail") or answer.get("message") or text  # the first is FastAPI's
    return None if error is None else RequestError(str(error), status=status)


def _utf8(data: bytes) -> str:
    """A character that is cut inside the JSON text is the server's defect: it shows as U+FFFD."""
    return data.decode("utf-8", "replace")
