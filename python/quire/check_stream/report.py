"""Results as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from quire.check_stream.protocol import Adapter
from quire.check_stream.run import Result

_INDENT = " " * 6
_LONGEST = 600


def as_lines(result: Result) -> list[str]:
    """One line, and for a failure three more."""
    outcome = result.outcome
    if outcome.status != "fail":
        return [f"{outcome.status:5} {result.check.name:22}{outcome.seen}"]
    lines = [f"{outcome.status:5} {result.check.name:22}broken: {result.check.rule}"]
    parts = (("sent", outcome.sent), ("seen", outcome.seen), ("expected", outcome.expected))
    return lines + [f"{_INDENT}{name:9}{_cut(text)}" for name, text in parts]


def summary(results: Sequence[Result]) -> dict[str, int]:
    return {"pass": 0, "fail": 0, "n/a": 0} | Counter(result.outcome.status for result in results)


def write_json(path: Path, url: str, adapter: Adapter, results: Sequence[Result]) -> None:
    """{url, api, model, summary, checks: [{name, rule, status, sent, seen, expected, seconds}]}"""
    checks = [
        {
            "name": result.check.name,
            "rule": result.check.rule,
            **asdict(result.outcome),
            "seconds": round(result.seconds, 3),
        }
        for result in results
    ]
    head = {"url": url, "api": adapter.api, "model": adapter.model}
    document = head | {"summary": summary(results), "checks": checks}
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _cut(text: str) -> str:
    # Halves of surrogate pairs cannot be printed.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\\n")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
