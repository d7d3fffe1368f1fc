"""Results as text for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    return {
        status: sum(result.outcome.status == status for result in results)
        for status in ("pass", "fail", "n/a")
    }


def write_json(path: Path, url: str, adapter: Adapter, results: Sequence[Result]) -> None:
    """{url, api, model, summary, checks: [{name, rule, status, sent, seen, expected, seconds}]}"""
    checks = [
        {
            "name": result.check.name,
            "rule": result.check.rule,
            "status": result.outcome.status,
            "sent": result.outcome.sent,
            "seen": result.outcome.seen,
            "expected": result.outcome.expected,
            "seconds": round(result.seconds, 3),
        }
        for result in results
    ]
    document = {
        "url": url,
        "api": adapter.api,
        "model": adapter.model,
        "summary": summary(results),
        "checks": checks,
    }
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _cut(text: str) -> str:
    # Halves of surrogate pairs cannot be printed.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\\n")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
