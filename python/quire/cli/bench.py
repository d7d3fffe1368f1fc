"""`quire bench`: runs the benchmarks of a source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from quire.cli.common import console

app = typer.Typer(help="Measure parts of the system (in a source checkout).", no_args_is_help=True)

_BENCHMARKS = {
    "engine": "Tokens per second of the engine alone, without Triton.",
    "responses": "Responses per second through generation and detokenizer.",
    "scheduler": "Time of one scheduler step.",
    "cpu_kernels": "CPU kernels against the machine's limits.",
}


def benchmarks_folder() -> Path | None:
    folder = Path(__file__).resolve().parents[3] / "benchmarks"
    return folder if folder.is_dir() else None


def _add(name: str, text: str) -> None:
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}

    @app.command(name.replace("_", "-"), help=text, context_settings=settings, add_help_option=False)
    def run(context: typer.Context) -> None:
        folder = benchmarks_folder()
        script = folder / f"bench_{name}.py" if folder else None
        if script is None or not script.is_file():
            console.print(
                f"bench {name}: no benchmarks/bench_{name}.py; allowed: a source checkout", style="red"
            )
            raise typer.Exit(1)
        raise typer.Exit(subprocess.call([sys.executable, str(script), *context.args]))


for _name, _text in _BENCHMARKS.items():
    _add(_name, _text)
