"""What several commands share: the console, where the repository is, errors as text instead of tracebacks."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from quire.errors import ModelNotFound, QuireError
from quire.model_path import data_folder
from quire.triton.server import TritonServer

console = Console(highlight=False, soft_wrap=True)

RepositoryOption = Annotated[
    Path | None,
    typer.Option(
        "--model-repository", "--repository", help="Default: ./model_repository, else the packaged one."
    ),
]

_LOADED = re.compile(r"successfully loaded '([^']+)'")


def default_repository() -> Path:
    """./model_repository, else the one that comes with the package."""
    local = Path("model_repository")
    if local.is_dir():
        return local
    with errors_as_text():
        return packaged_repository()


def packaged_repository() -> Path:
    """The one that comes with the package. Raises ModelNotFound."""
    if packaged := data_folder("model_repository"):
        return packaged
    raise ModelNotFound("model_repository: none came with the package; allowed: one of your own")


@contextlib.contextmanager
def errors_as_text() -> Iterator[None]:
    """An error of ours is printed, and ends the command with status 1."""
    try:
        yield
    except QuireError as error:
        console.print(str(error), style="red", markup=False)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def running(server: TritonServer, models: int) -> Iterator[TritonServer]:
    """Starts the server with a progress display and stops it in order at the end, on Ctrl-C, SIGTERM and the
    SIGHUP of a closed terminal too; a second signal ends it at once."""
    is_stopping = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            server.kill()
            return
        is_stopping = True
        raise KeyboardInterrupt

    # What was ignored before, as SIGHUP under nohup, stays so.
    previous = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        start(server, models)
        yield server
    finally:
        is_stopping = True
        with console.status("stopping the server") as status:

            def show() -> None:
                if count := server.num_connections():
                    patience = f"{server.exit_timeout} s at most; Ctrl-C ends it at once"
                    status.update(f"stopping the server: clients hold {count} connections ({patience})")

            server.stop(on_wait=show)
        for number, handler in previous.items():
            signal.signal(number, handler)


def start(server: TritonServer, models: int) -> None:
    """Start with a spinner that says which models are loaded."""
    began = time.monotonic()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting tritonserver", total=None)

        def show() -> None:
            loaded = list(dict.fromkeys(_LOADED.findall(server.log)))
            if loaded:
                names = ", ".join(loaded)
                progress.update(task, description=f"loading models ({len(loaded)} of {models}): {names}")

        server.start(on_wait=show)
    console.print(f"tritonserver is ready after {time.monotonic() - began:.1f} s")
