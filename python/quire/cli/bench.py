"""`quire bench`: runs the benchmarks of a source checkout."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from quire.cli.common import console
from quire.errors import not_one_of


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help='A benchmark, or "all". Default: list them.')] = None,
) -> None:
    """Run benchmarks/bench_NAME.py of a source checkout; further arguments go to it."""
    scripts = benchmarks()
    if not scripts:
        console.print("bench: no folder benchmarks here; allowed: a source checkout", style="red")
        raise typer.Exit(1)
    if name is None:
        for known, script in scripts.items():
            console.print(f"{known:12} {_summary(script)}", markup=False)
        return
    if name != "all" and name not in scripts:
        console.print(f"bench: {not_one_of(name, [*scripts, 'all'])}", style="red", markup=False)
        raise typer.Exit(1)
    statuses = []
    for script in scripts.values() if name == "all" else [scripts[name]]:
        console.rule(script.stem.removeprefix("bench_"))
        console.file.flush()
        statuses.append(subprocess.call([sys.executable, str(script), *context.args]))
    raise typer.Exit(max(statuses, key=abs))


def benchmarks(folder: Path | None = None) -> dict[str, Path]:
    """Name -> script."""
    folder = folder or Path(__file__).resolve().parents[3] / "benchmarks"
    return {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}


def _summary(script: Path) -> str:
    text = ast.get_docstring(ast.parse(script.read_text("utf-8"))) or ""
    return text.partition("\n")[0]
