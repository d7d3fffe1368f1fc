"""`quire demo`: start, ask, stream, put under load, stop. Checks a whole installation in half a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from quire.cli.check import report
from quire.cli.common import console, default_repository, errors_as_text, running
from quire.cli.load import Result, percentile, run_load, stream
from quire.errors import ServerError
from quire.triton.repository import read_configs, text_ensembles
from quire.triton.server import TritonServer

_PROMPTS = (
    "def fibonacci(n):",
    "class Stack:\n    def __init__(self):",
    "import os\n\n\ndef walk(path):",
    "def is_prime(n):",
    "for line in open(filename):",
)


def demo(
    model_repository: Annotated[
        Path | None, typer.Option(help="Default: ./model_repository, else the packaged one.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Concurrent requests of the load.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
) -> None:
    """Serve on free ports, send one request, one stream and a load, print figures, stop."""
    repository = model_repository or default_repository()
    if not report(repository):
        raise typer.Exit(1)
    with errors_as_text():
        model = next(iter(text_ensembles(read_configs(repository))), None)
        if model is None:
            raise ServerError(
                f"{repository}: no model to ask; allowed: an ensemble with text_input and stream"
            )
        server = TritonServer(repository)
        with running(server, models=len(list(repository.glob("*/config.pbtxt")))):
            host, port = server.grpc_url.rpartition(":")[0], server.http_port
            ask = {"max_tokens": max_tokens, "temperature": 0.0}
            _show_one(server, model, {"text_input": _PROMPTS[0], **ask})
            _show_stream(host, port, model, {"text_input": _PROMPTS[1], **ask})
            payloads = [
                {"text_input": _PROMPTS[index % len(_PROMPTS)], "seed": index, **ask, "temperature": 0.8}
                for index in range(requests)
            ]
            with console.status(f"{requests} requests at once"):
                results, seconds = run_load(host, port, payloads, model)
            failed = [result.error or "no answer" for result in results if result.error or not result.events]
            if failed:
                raise ServerError(f"{len(failed)} of {requests} requests failed, the first with: {failed[0]}")
            console.print(_table(results, seconds))
    console.print("stopped cleanly")


def _show_one(server: TritonServer, model: str, payload: dict[str, object]) -> None:
    console.rule("generate")
    status, answer = server.generate(model, payload)
    if status != 200:
        raise ServerError(f"generate: status {status}: {answer}")
    console.print(answer["text_output"], markup=False)


def _show_stream(host: str, port: int, model: str, payload: dict[str, object]) -> None:
    console.rule("generate_stream")
    console.print(payload["text_input"], style="dim", end="", markup=False)
    finish_reason = ""
    for event in stream(host, port, payload, model):
        # Printed as it arrives: rich would hold text back until the end of a line.
        console.file.write(event.text)
        console.file.flush()
        finish_reason = event.finish_reason
    console.print(f"\n(finish_reason: {finish_reason})", style="dim", markup=False)


def _table(results: list[Result], seconds: float) -> Table:
    tokens = sum(result.num_tokens for result in results)
    first = [1e3 * result.time_to_first_token for result in results]
    gaps = [1e3 * gap for result in results for gap in result.gaps]
    table = Table(title=f"{len(results)} requests at once")
    for name in ("tokens", "seconds", "tokens/s", "TTFT p50 ms", "TTFT p99 ms", "ITL p50 ms", "ITL p99 ms"):
        table.add_column(name, justify="right")
    table.add_row(
        str(tokens),
        f"{seconds:.2f}",
        f"{tokens / seconds:.0f}",
        *(f"{percentile(values, share):.1f}" for values in (first, gaps) for share in (0.5, 0.99)),
    )
    return table
