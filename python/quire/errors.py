"""What can go wrong, as a tree. Every error of ours names what was given and what is allowed.

QuireError
├── InvalidArgument        a request field or an argument: .field, .given, .allowed (also a ValueError)
├── ConfigError            a settings file: .file, .key                             (also a ValueError)
├── ModelError             a model folder that cannot be used
│   ├── ModelNotFound      nothing at that path or under that name
│   └── UnsupportedModel   found, but of a kind that is not supported (decoder, architecture)
├── ServerError            tritonserver
│   ├── ServerNotFound     not installed
│   ├── PortInUse          a port is taken; .port, .flag
│   └── ServerStartError   it ended or did not get ready; .log holds its own error lines
└── EngineError            the engine process or the engine core failed
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire import _core

_MAX_SHOWN = 80


class QuireError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidArgument(QuireError, ValueError):  # noqa: N818 - the C++ name
    """Message: "<field>: got <given>; allowed: <allowed>"."""

    def __init__(self, field: str, given: str, allowed: str) -> None:
        super().__init__(f"{field}: got {given}; allowed: {allowed}")
        self.field = field
        self.given = given
        self.allowed = allowed

    @classmethod
    def from_core(cls, error: _core.InvalidArgument, where: str = "") -> InvalidArgument:
        """The core's refusal as our own: one class for callers to catch. `where` comes before the field."""
        _, _, rest = str(error).partition(": got ")
        given, _, allowed = rest.partition("; allowed: ")
        return cls(where + error.field, given, allowed)

    def __reduce__(self) -> tuple[type[InvalidArgument], tuple[str, str, str]]:
        return type(self), (self.field, self.given, self.allowed)


class ConfigError(QuireError, ValueError):
    """A settings file. Message: "<file>: <key>: got <given>; allowed: <allowed>" or "<file>: <problem>"."""

    def __init__(self, file: Path | str | None, problem: str, *, key: str | None = None) -> None:
        where = [str(part) for part in (file, key) if part is not None]
        super().__init__(": ".join([*where, problem]))
        self.file = file
        self.key = key
        self.problem = problem


class ModelError(QuireError):
    """A model folder that cannot be used."""


class ModelNotFound(ModelError):  # noqa: N818
    """Nothing at that path or under that name."""


class UnsupportedModel(ModelError):  # noqa: N818
    """Found, but of a kind that is not supported."""


class ServerError(QuireError):
    """tritonserver could not be found, started or talked to."""


class ServerNotFound(ServerError):  # noqa: N818
    """tritonserver is not installed; the message says what to install."""


class PortInUse(ServerError):  # noqa: N818
    """A port that was asked for is taken."""

    def __init__(self, port: int, flag: str) -> None:
        super().__init__(f"{flag}: got {port}, which is in use; allowed: a free port")
        self.port = port
        self.flag = flag


class ServerStartError(ServerError):
    """tritonserver ended or did not get ready; `log` has its own error lines."""

    def __init__(self, problem: str, log: str = "") -> None:
        super().__init__(f"{problem}\n{log}" if log else problem)
        self.log = log


class EngineError(QuireError):
    """The engine process or the engine core failed."""


def told(error: BaseException) -> str:
    """What to say about an error, which may not be ours, where no traceback is shown."""
    return str(error) if isinstance(error, QuireError) else f"{type(error).__name__}: {error}"


def describe(value: object, depth: int = 4) -> str:
    """`value` for an error message, on one line: JSON where it can be, cut where it is long or deep. Takes no
    longer for a value that is huge or holds itself."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to print the largest ones
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        shown = json.dumps(value[: _MAX_SHOWN + 1], ensure_ascii=False)
        return _cut(shown, f"{len(value)} characters")
    if isinstance(value, (list, tuple)):
        texts = (describe(item, depth - 1) for item in value)
        return _cut(f"[{_joined(texts) if depth > 0 else '...'}]", f"{len(value)} items")
    if isinstance(value, dict):
        texts = (f"{describe(key, depth - 1)}: {describe(item, depth - 1)}" for key, item in value.items())
        return _cut(f"{{{_joined(texts) if depth > 0 else '...'}}}", f"{len(value)} items")
    try:
        shown = " ".join(repr(value).split())
    except Exception:  # of somebody else's class; what is to be said is that it is the wrong one
        return f"a {type(value).__name__}"
    return f"{_cut(shown, f'{len(shown)} characters')} ({type(value).__name__})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean "x"?)" for the nearest known name, or "", as the core says it."""
    from quire import _core

    return _core.did_you_mean(name.encode("utf-8", "backslashreplace").decode(), list(known))


def not_one_of(name: str, known: Collection[str], what: str = "") -> str:
    """What is wrong with a name, without where it was given. `what`: stands after it."""
    return f"got {describe(name)}{what}{did_you_mean(name, known)}; allowed: {', '.join(known)}"


def _joined(texts: Iterable[str]) -> str:
    """With commas; no more of them than are shown."""
    taken: list[str] = []
    num_characters = 0
    for text in texts:
        taken.append(text)
        num_characters += len(text)
        if num_characters > _MAX_SHOWN:
            break
    return ", ".join(taken)


def _cut(text: str, size: str) -> str:
    # Lone surrogates, which JSON escapes can produce, cannot be printed or sent.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}... ({size})"


def first_line(error: BaseException) -> str:
    """The first line of its message that is not empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
