"""`quire serve`: a tritonserver that stays up."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Annotated

import typer

from quire.cli.check import report
from quire.cli.common import RepositoryOption, console, errors_as_text, running
from quire.cli.repository import ModelOption, chosen_repository
from quire.cli.supervise import supervise
from quire.triton.repository import loaded_with, read_configs, text_ensembles
from quire.triton.server import TritonServer, repository_index
from quire.triton.server_arguments import is_on, models_at_start


def serve(
    model_repository: RepositoryOption = None,
    model: ModelOption = None,
    name: Annotated[
        str | None, typer.Option(help="With --model: what clients call instead of `ensemble`.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="With --model: a setting; may be given several times."
        ),
    ] = None,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8002,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. 0.0.0.0: every interface; Triton has no authentication, so whoever "
            "reaches the ports can use the models, and in explicit model control load and unload them."
        ),
    ] = "127.0.0.1",
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds until all models are loaded.")] = 600,
    exit_timeout: Annotated[int, typer.Option(min=0, help="Seconds for open requests when stopping.")] = 30,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start tritonserver again when it ends by itself.")
    ] = False,
    guard: Annotated[
        bool, typer.Option(help="Preload the library that keeps HTTP streams whole under load.")
    ] = True,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the server's whole log.")] = False,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="More arguments for tritonserver.")
    ] = None,
) -> None:
    """Serve a model repository, or one model, with tritonserver until Ctrl-C."""
    passed_on = arguments or []
    with errors_as_text(), chosen_repository(model_repository, model, name, set_ or []) as repository:
        models = models_at_start(passed_on)
        # A model that cannot be loaded ends a server only with exit-on-error, which is its default.
        if not report(repository, models) and is_on("--exit-on-error", passed_on):
            raise typer.Exit(1)
        configs, _ = read_configs(repository)
        loaded = set(configs) if models is None else loaded_with(models, configs) & set(configs)
        server = TritonServer(
            repository,
            http_port=http_port or None,
            grpc_port=grpc_port or None,
            metrics_port=metrics_port or None,
            host=host,
            with_guard=guard,
            arguments=passed_on,
            start_timeout=start_timeout,
            exit_timeout=exit_timeout,
        )
        try:
            with running(server, models=len(loaded)):
                ready = _ready(server, loaded)
                _print_examples(server, text_ensembles({name: configs[name] for name in ready}))
                supervise(server, len(loaded), restart=restart, verbose=verbose)
        except KeyboardInterrupt:
            console.print("stopped")


def _ready(server: TritonServer, loaded: Set[str]) -> list[str]:
    """The models that are served; prints why each of the others is not."""
    index = repository_index(server.http_url) or []
    ready = {entry["name"] for entry in index if entry.get("state") == "READY"}
    reasons = {entry["name"]: entry.get("reason") for entry in index}
    failed: dict[str, list[str]] = {}
    for name in sorted(loaded - ready):
        failed.setdefault(reasons.get(name) or "a step of it is not loaded", []).append(name)
    for reason, names in failed.items():
        console.print(f"{', '.join(names)}: not loaded: {reason}", style="red", markup=False)
    return sorted(ready & loaded)


def _print_examples(server: TritonServer, ensembles: list[str]) -> None:
    console.print(f"\nHTTP {server.http_url}   gRPC {server.grpc_url}   metrics {server.metrics_url}\n")
    console.print("Try, in another terminal:\n")
    question = {"text_input": "def fibonacci(n):", "max_tokens": 64, "temperature": 0}
    for name in ensembles[:1]:
        url = f"{server.http_url}/v2/models/{name}"
        console.print(f"  curl -s {url}/generate -d '{json.dumps(question)}'", markup=False)
        streamed = json.dumps(question | {"stream": True})
        console.print(f"  curl -sN {url}/generate_stream -d '{streamed}'", markup=False)
    console.print(f"  curl -s {server.metrics_url}\n", markup=False)
    if len(ensembles) > 1:
        console.print(f"The same for: {', '.join(ensembles[1:])}\n", markup=False)
    console.print("Ctrl-C stops the server.\n")
