"""What `quire check` finds, collected file by file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that would fail at start or at the first request."""

    file: Path
    message: str
    is_note: bool = False  # worth knowing, but a start may well succeed

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


class Findings:
    """The problems of one file, added to `problems`."""

    def __init__(self, file: Path, problems: list[Problem]) -> None:
        self.file = file
        self._problems = problems

    def problem(self, message: str) -> None:
        self._problems.append(Problem(file=self.file, message=message))

    def note(self, message: str) -> None:
        self._problems.append(Problem(file=self.file, message=message, is_note=True))

    def add(self, problems: Iterable[Problem]) -> None:
        self._problems += problems

    def of(self, file: Path) -> Findings:
        """A collection for another file, with the same list of problems."""
        return Findings(file, self._problems)
