"""`quire check-stream`: does a server stream correctly?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from quire.check_stream import CheckStreamError, Lab, Result, connect, run_checks
from quire.check_stream.lab import PROMPTS
from quire.check_stream.protocol import Adapter
from quire.cli.common import console

_INDENT = " " * 6
_LONGEST = 600


def check_stream(
    url: Annotated[
        str, typer.Argument(help="http://HOST:PORT, https://..., grpc://HOST:PORT or an endpoint.")
    ],
    model: Annotated[str | None, typer.Option(help="Default: the ensemble, or the only one.")] = None,
    api: Annotated[
        str | None, typer.Option(help="triton-http, triton-grpc, openai or openai-chat. Default: found out.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="Prompts instead of the built-in ones: a JSON list, or one a line.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for one request.")] = 60.0,
    concurrency: Annotated[
        int, typer.Option(min=2, max=1024, help="Streams of the checks `concurrent`, `beside-large-body`.")
    ] = 16,
    body_mb: Annotated[
        int, typer.Option(min=0, max=1000, help="Size of the body of `beside-large-body`. 0: skip it.")
    ] = 16,
    header: Annotated[
        list[str] | None, typer.Option(help='HTTP header "Name: value"; may be given several times.')
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here too.")] = None,
) -> None:
    """Check that a Triton or OpenAI-style server at URL streams what it answers in one piece.

    Status 0: nothing is broken. 1: a check failed. 2: the checks could not be run.
    """

    def show(result: Result) -> None:
        style = {"fail": "red", "n/a": "dim"}.get(result.outcome.status)
        for line in _as_lines(result):
            console.print(line, style=style, markup=False)

    try:
        prompts = _prompts(prompt_file)
        headers = dict(_header(item) for item in header or [])
        adapter = connect(url, api=api, model=model, timeout=timeout, headers=headers)
        console.print(f"{url}: {adapter.api}, model {adapter.model}", markup=False)
        with console.status("asking every prompt"):
            lab = Lab(adapter, prompts, concurrency=concurrency, body_megabytes=body_mb)
            results = run_checks(lab, show)
        if json_file is not None:
            _write_json(json_file, url, adapter, results)
    except (CheckStreamError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
    counts = _summary(results)
    console.print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['n/a']} not applicable")
    raise typer.Exit(1 if counts["fail"] else 0)


def _prompts(path: Path | None) -> Sequence[str]:
    if path is None:
        return PROMPTS
    text = path.read_text("utf-8")
    try:
        prompts = json.loads(text)
    except ValueError:
        prompts = [line for line in text.splitlines() if line.strip()]
    if not (
        isinstance(prompts, list) and prompts and all(isinstance(item, str) and item for item in prompts)
    ):
        raise CheckStreamError(
            f"--prompt-file: got {path}; allowed: a JSON list of strings, or lines of text"
        )
    return prompts


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise CheckStreamError(f'--header: got {text!r}; allowed: "Name: value"')
    return name.strip(), value.strip()


def _as_lines(result: Result) -> list[str]:
    """One line, and for a failure three more."""
    outcome = result.outcome
    if outcome.status != "fail":
        return [f"{outcome.status:5} {result.check.name:22}{outcome.seen}"]
    lines = [f"{outcome.status:5} {result.check.name:22}broken: {result.check.rule}"]
    parts = (("sent", outcome.sent), ("seen", outcome.seen), ("expected", outcome.expected))
    return lines + [f"{_INDENT}{name:9}{_cut(text)}" for name, text in parts]


def _summary(results: Sequence[Result]) -> dict[str, int]:
    return {"pass": 0, "fail": 0, "n/a": 0} | Counter(result.outcome.status for result in results)


def _write_json(path: Path, url: str, adapter: Adapter, results: Sequence[Result]) -> None:
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
    document = head | {"summary": _summary(results), "checks": checks}
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _cut(text: str) -> str:
    # Halves of surrogate pairs cannot be printed.
    text = text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\n", "\\n")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
