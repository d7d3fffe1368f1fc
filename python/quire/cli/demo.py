"""`quire demo`: start, ask, stream, put under load, stop. Checks a whole installation in half a minute."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from quire.check_stream import Lab, connect
from quire.check_stream.protocol import Adapter, Recording, Request
from quire.cli.check import report
from quire.cli.common import RepositoryOption, console, errors_as_text, running
from quire.cli.repository import ModelOption, chosen_repository
from quire.config import EngineConfig
from quire.errors import ServerError
from quire.tokenizer import Tokenizer
from quire.triton.repository import read_configs, text_ensembles
from quire.triton.server import TritonServer
from quire.triton.tokenizer_settings import newest_settings

_QUESTIONS = (  # to a model with a chat template
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue? Answer in one sentence.",
    "Write one sentence about the sea.",
)
_PROMPTS = (
    "def fibonacci(n):",
    "class Stack:\n    def __init__(self):",
    "import os\n\n\ndef walk(path):",
    "def is_prime(n):",
    "for line in open(filename):",
)


def demo(
    model_repository: RepositoryOption = None,
    model: ModelOption = None,
    requests: Annotated[int, typer.Option(min=1, help="Concurrent requests of the load.")] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 64,
) -> None:
    """Serve on free ports, send one request, one stream and a load, print figures, stop."""
    with errors_as_text(), chosen_repository(model_repository, model) as repository:
        if not report(repository):
            raise typer.Exit(1)
        configs, _ = read_configs(repository)
        ensemble = next(iter(text_ensembles(configs)), None)
        if ensemble is None:
            raise ServerError(
                f"{repository}: no model to ask; allowed: an ensemble with text_input and stream"
            )
        is_chat = model is not None and _has_chat_template(repository)
        prompts = _QUESTIONS if is_chat else _PROMPTS

        def request(number: int, **settings: Any) -> Request:
            prompt = prompts[number % len(prompts)]
            messages = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {}
            return Request(prompt=prompt, max_tokens=max_tokens, extra=messages, **settings)

        server = TritonServer(repository)
        with running(server, models=len(list(repository.glob("*/config.pbtxt")))):
            adapter = connect(server.http_url, api="triton-http", model=ensemble, timeout=300)
            _show_one(adapter, request(1))
            _show_stream(adapter, request(0))
            load = [request(seed, temperature=0.8, seed=seed) for seed in range(requests)]
            with console.status(f"{requests} requests at once"):
                results = Lab(adapter).at_once(load, stream=True)
            failed = [result.error or "no answer" for result in results if result.error or not result.chunks]
            if failed:
                raise ServerError(f"{len(failed)} of {requests} requests failed, the first with: {failed[0]}")
            console.print(_table(results))
    console.print("stopped cleanly")


def _has_chat_template(repository: Path) -> bool:
    """Whether the model of a repository that was made for one answers messages."""
    folder = EngineConfig.from_file(newest_settings(repository / "generation")).model_folder()
    return bool(Tokenizer(folder).chat_templates(trusts_requests=False).templates)


def _show_one(adapter: Adapter, request: Request) -> None:
    console.rule("generate")
    console.print(request.prompt, style="dim", end="\n" if request.extra else "", markup=False)
    console.print(adapter.answer(request).text, markup=False)


def _show_stream(adapter: Adapter, request: Request) -> None:
    console.rule("generate_stream")
    console.print(request.prompt, style="dim", end="\n" if request.extra else "", markup=False)
    finish_reason = None
    for chunk in adapter.events(request, Recording()):
        # Printed as it arrives: rich would hold text back until the end of a line.
        console.file.write(chunk.text)
        console.file.flush()
        finish_reason = chunk.finish_reason
    console.print(f"\n(finish_reason: {finish_reason})", style="dim", markup=False)


def _table(results: list[Recording]) -> Table:
    times = [[result.began, *(chunk.time for chunk in result.chunks)] for result in results]
    tokens = sum(result.num_output_tokens or 0 for result in results)
    seconds = max(last for *_, last in times) - min(began for began, *_ in times)
    first = [after - began for began, after, *_ in times]
    gaps = [after - before for _, *rest in times for before, after in pairwise(rest)]
    table = Table(title=f"{len(results)} requests at once")
    for name in ("tokens", "seconds", "tokens/s", "TTFT p50 ms", "TTFT p99 ms", "ITL p50 ms", "ITL p99 ms"):
        table.add_column(name, justify="right")
    table.add_row(
        str(tokens),
        f"{seconds:.2f}",
        f"{tokens / seconds:.0f}",
        *(
            f"{1e3 * np.quantile(values or [0], share, method='inverted_cdf'):.1f}"
            for values in (first, gaps)
            for share in (0.5, 0.99)
        ),
    )
    return table
