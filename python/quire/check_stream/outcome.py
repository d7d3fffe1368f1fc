"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from quire.check_stream.lab import difference, shorten
from quire.check_stream.protocol import Adapter, Request

Status = Literal["pass", "fail", "n/a"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """pass: `seen` says what was looked at. fail: sent, seen, expected. n/a: `seen` is the reason."""

    status: Status
    sent: str = ""
    seen: str
    expected: str = ""


def passed(seen: str) -> Outcome:
    return Outcome(status="pass", seen=seen)


def failed(*, sent: str, seen: str, expected: str) -> Outcome:
    return Outcome(status="fail", sent=sent, seen=seen, expected=expected)


def skipped(reason: str) -> Outcome:
    return Outcome(status="n/a", seen=reason)


class Verdict:
    """Collects the cases of one check: the first wrong one is shown."""

    def __init__(self, adapter: Adapter) -> None:
        self.cases = 0
        self._adapter = adapter
        self._wrong: list[Outcome] = []

    def case(
        self,
        request: Request,
        is_right: bool,
        *,
        seen: str,
        expected: str,
        stream: bool = True,
        remark: str = "",
    ) -> None:
        """`remark`: stands before what was sent."""
        self.cases += 1
        if not is_right:
            sent = remark + self._adapter.show(request, stream=stream)
            self._wrong.append(failed(sent=sent, seen=seen, expected=expected))

    def text(self, request: Request, got: str, expected: str, *, error: str = "", **where: Any) -> None:
        """The case that `got` is `expected`, and that no `error` came with it. `where`: as for case()."""
        is_right, seen = got == expected and not error, error or difference(expected, got)
        self.case(request, is_right, seen=seen, expected=shorten(expected), **where)

    def outcome(self, cases: str, reason: str) -> Outcome:
        """`cases` names them in the plural; `reason`: why there may be none."""
        if not self.cases:
            return skipped(reason)
        if not self._wrong:
            return passed(f"{self.cases} {cases}")
        first = self._wrong[0]
        if self.cases > 1:
            wrong = f"{len(self._wrong)} of {self.cases} cases are wrong; this is the first"
            return replace(first, seen=f"{first.seen} ({wrong})")
        return first
