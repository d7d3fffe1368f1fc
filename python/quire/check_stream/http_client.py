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

    def get(self, path: str) -> Any:
        return self._json("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._json("POST", path, body)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[str]:
        """The data of each server-sent event. Closing the iterator closes the connection."""
        with self._answer("POST", path, body) as answer:
            if answer.status != 200:
                raise _refusal(answer.status, _read(answer))
            kind = answer.headers.get_content_type()
            if kind != "text/event-stream":
                # An error that came before the first event, or no stream at all.
                text = _utf8(_read(answer))
                if _error_of(_parsed(text)) is not None:
                    raise _refusal(None, text.encode())
                raise RequestError(f"got Content-Type {kind}; expected text/event-stream: {text[:200]}")
            data: list[str] = []
            for line in _lines(answer):
                if line.startswith(b"data:"):
                    value = line[5:]
                    data.append(_utf8(value[1:] if value.startswith(b" ") else value))
                elif not line and data:
                    yield "\n".join(data)
                    data = []
            if data:
                yield "\n".join(data)

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        with self._answer(method, path, body) as answer:
            text = _read(answer)
        if answer.status != 200:
            raise _refusal(answer.status, text)
        parsed = _parsed(_utf8(text))
        if parsed is None and text:
            raise RequestError(f"the answer is no JSON: {_utf8(text)[:200]!r}")
        if _error_of(parsed) is not None:  # Triton answers some errors with HTTP 200
            raise _refusal(None, text)
        return parsed

    @contextlib.contextmanager
    def _answer(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer's head has come; leaving closes answer and connection."""
        parts = urlsplit(self.base)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        if not parts.hostname:
            raise CheckStreamError(f"URL: got {self.base!r}; allowed: http://HOST:PORT")
        connection = kind(parts.hostname, parts.port, timeout=self.timeout)
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        with contextlib.closing(connection):
            try:
                connection.request(method, parts.path + path, data, headers)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise RequestError(_lost(error), lost=True) from error
            with answer:
                yield answer


def event_json(data: str) -> dict[str, Any]:
    """One event's object. Raises RequestError where it is an error or no object."""
    parsed = _parsed(data)
    if not isinstance(parsed, dict):
        raise RequestError(f"an event is no JSON object: {data[:200]!r}")
    if _error_of(parsed) is not None:
        raise _refusal(None, data.encode())
    return parsed


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise RequestError(_lost(error), lost=True) from error


def _lines(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        for line in answer:
            yield line.rstrip(b"\r\n")
    except (OSError, http.client.HTTPException) as error:
        raise RequestError(_lost(error), lost=True) from error


def _lost(error: Exception) -> str:
    return f"connection: {type(error).__name__}: {error}"


def _utf8(data: bytes) -> str:
    """A character that is cut inside the JSON text is the server's defect: it shows as U+FFFD."""
    return data.decode("utf-8", "replace")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _error_of(parsed: Any) -> Any:
    return parsed.get("error") if isinstance(parsed, dict) else None


def _refusal(status: int | None, body: bytes) -> RequestError:
    text = body.decode("utf-8", "replace")
    parsed = _parsed(text)
    error = _error_of(parsed)
    if isinstance(error, dict):
        code = error.get("code")
        inner = code if isinstance(code, int) and status is None else status
        message, param = str(error.get("message", error)), str(error.get("param") or "")
        return RequestError(message, status=inner, param=param)
    if error is None and isinstance(parsed, dict):  # FastAPI's own shape
        error = parsed.get("detail") or parsed.get("message")
    return RequestError(text if error is None else str(error), status=status)
