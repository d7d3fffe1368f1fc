"""What becomes of each setting of a repository that moves."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from quire.errors import describe

_MAX_SHOWN = 300
NEEDED = "model"  # the one key that nothing can do without


class Verdict(Enum):
    TAKEN = "taken"
    NEUTRAL = "neutral"  # asks for nothing that is not done anyway
    MISSING = "no counterpart"
    UNKNOWN = "unknown"  # to the server that it was written for, too
    IGNORED = "ignored"  # one of the last two, with the user's consent


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One setting. `file`: relative to the repository. `key`: what --ignore calls it."""

    file: str
    key: str
    value: str  # for people
    verdict: Verdict
    note: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the move waits for the user's consent."""
        return self.verdict in (Verdict.MISSING, Verdict.UNKNOWN)


@dataclass
class Findings:
    """The findings about one model. `ignored`: keys that may go without a counterpart."""

    ignored: Collection[str] = ()
    found: list[Finding] = field(default_factory=list)

    def taken(self, file: str, key: str, value: object, note: str = "") -> None:
        self._add(file, key, value, Verdict.TAKEN, note)

    def neutral(self, file: str, key: str, value: object, note: str = "") -> None:
        self._add(file, key, value, Verdict.NEUTRAL, note)

    def missing(self, file: str, key: str, value: object, note: str = "") -> None:
        self._add(file, key, value, Verdict.MISSING, note)

    def unknown(self, file: str, key: str, value: object, note: str = "") -> None:
        self._add(file, key, value, Verdict.UNKNOWN, note)

    def judge(self, file: str, key: str, value: object, problem: str | None, note: str = "") -> bool:
        """Whether it is neutral: there is no problem."""
        (self.missing if problem else self.neutral)(file, key, value, problem or note)
        return problem is None

    def _add(self, file: str, key: str, value: object, verdict: Verdict, note: str) -> None:
        is_open = verdict in (Verdict.MISSING, Verdict.UNKNOWN)
        if is_open and key in self.ignored and key != NEEDED:
            verdict, note = Verdict.IGNORED, f"by --ignore: {note}"
        value = _printable(value) if isinstance(value, str) else describe(value)
        key, note = _printable(key), _printable(note)
        self.found.append(Finding(file=file, key=key, value=value, verdict=verdict, note=note))


def _printable(text: str) -> str:
    """On one line and in UTF-8, whatever a file holds."""
    if len(text) > _MAX_SHOWN:
        text = f"{text[:_MAX_SHOWN]}... ({len(text)} characters)"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
