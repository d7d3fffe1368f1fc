"""`quire serve`: a tritonserver that stays up."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from quire.cli.check import report
from quire.cli.common import console, default_repository, errors_as_text, running
from quire.errors import ServerStartError
from quire.triton.server import TritonServer


def serve(
    model_repository: Annotated[
        Path | None, typer.Option(help="Default: ./model_repository, else the packaged one.")
    ] = None,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    start_timeout: Annotated[float, typer.Option(min=1, help="Seconds until all models are loaded.")] = 600,
    exit_timeout: Annotated[int, typer.Option(min=0, help="Seconds for open requests when stopping.")] = 30,
    guard: Annotated[
        bool, typer.Option(help="Preload the library that keeps HTTP streams whole under load.")
    ] = True,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the server's whole log.")] = False,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="More arguments for tritonserver.")
    ] = None,
) -> None:
    """Serve a model repository with tritonserver until Ctrl-C."""
    repository = model_repository or default_repository()
    if not report(repository):
        raise typer.Exit(1)
    with errors_as_text():
        server = TritonServer(
            repository,
            http_port=http_port or None,
            grpc_port=grpc_port or None,
            metrics_port=metrics_port or None,
            host=host,
            with_guard=guard,
            arguments=arguments or [],
            start_timeout=start_timeout,
            exit_timeout=exit_timeout,
        )
        try:
            with running(server, models=len(list(repository.glob("*/config.pbtxt")))):
                _print_examples(server)
                _follow(server, verbose)
                raise ServerStartError("tritonserver ended by itself", server.error_lines())
        except KeyboardInterrupt:
            console.print("stopped")


def _print_examples(server: TritonServer) -> None:
    url = f"{server.http_url}/v2/models/ensemble"
    question = {"text_input": "def fibonacci(n):", "max_tokens": 64, "temperature": 0}
    console.print(f"\nHTTP {server.http_url}   gRPC {server.grpc_url}   metrics {server.metrics_url}\n")
    console.print("Try, in another terminal:\n")
    console.print(f"  curl -s {url}/generate -d '{json.dumps(question)}'", markup=False)
    console.print(
        f"  curl -sN {url}/generate_stream -d '{json.dumps(question | {'stream': True})}'", markup=False
    )
    console.print(f"  curl -s {server.metrics_url}\n", markup=False)
    console.print("Ctrl-C stops the server.\n")


def _follow(server: TritonServer, verbose: bool) -> None:
    """Pass on what the server and the engine say, until the server ends."""
    assert server.log_path
    with server.log_path.open("r", encoding="utf-8", errors="replace") as log:
        if not verbose:
            log.seek(0, os.SEEK_END)
        unfinished = ""
        while server.is_running:
            *lines, unfinished = (unfinished + log.read()).split("\n")
            for line in lines:
                # glog's informational lines begin with I and the date.
                if verbose or not (line[:1] == "I" and line[1:5].isdigit()):
                    console.print(line, markup=False)
            time.sleep(0.2)
