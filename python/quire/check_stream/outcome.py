"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["pass", "fail", "n/a"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """pass: `seen` says what was looked at. fail: sent, seen, expected. n/a: `seen` is the reason."""

    status: Status
    seen: str
    sent: str = ""
    expected: str = ""


def passed(seen: str) -> Outcome:
    return Outcome(status="pass", seen=seen)


def failed(*, sent: str, seen: str, expected: str, times: int = 1, of: int = 1) -> Outcome:
    """`times` of `of` cases were wrong; what is shown is the first."""
    if of > 1:
        seen = f"{seen} ({times} of {of} cases are wrong; this is the first)"
    return Outcome(status="fail", sent=sent, seen=seen, expected=expected)


def skipped(reason: str) -> Outcome:
    return Outcome(status="n/a", seen=reason)


class Verdict:
    """Collects the cases of one check: the first wrong one is shown."""

    def __init__(self) -> None:
        self.cases = 0
        self._wrong: list[tuple[str, str, str]] = []

    def case(self, is_right: bool, *, sent: str, seen: str, expected: str) -> None:
        self.cases += 1
        if not is_right:
            self._wrong.append((sent, seen, expected))

    def outcome(self, cases: str, reason: str) -> Outcome:
        """`cases` names them in the plural; `reason`: why there may be none."""
        if not self.cases:
            return skipped(reason)
        if not self._wrong:
            return passed(f"{self.cases} {cases}")
        sent, seen, expected = self._wrong[0]
        return failed(sent=sent, seen=seen, expected=expected, times=len(self._wrong), of=self.cases)
