"""`quire check`: what would fail at start, found without starting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from quire.cli.common import console, default_repository, errors_as_text
from quire.errors import QuireError
from quire.triton.check_process import check_repository_apart
from quire.triton.installation import find_installation
from quire.triton.problem import Problem

Repository = Annotated[
    Path | None, typer.Argument(help="Model repository. Default: ./model_repository, else the packaged one.")
]


def check(repository: Repository = None) -> None:
    """Check a model repository, its settings and its models' files. Status 1 when something would fail."""
    folder = repository or default_repository()
    if not report(folder):
        raise typer.Exit(1)
    console.print(f"{folder}: no problems", style="green", markup=False)


def report(repository: Path, models: Sequence[str] | None = None) -> bool:
    """Print every problem; returns whether a start can succeed that loads `models` (None: all)."""
    with errors_as_text():
        problems = check_repository_apart(repository, models)
    is_good = show(problems)
    try:
        find_installation()
    except QuireError as error:
        console.print(str(error), style="red", markup=False)
        return False
    return is_good


def show(problems: Sequence[Problem]) -> bool:
    """Print them; returns whether all are notes."""
    for problem in problems:
        console.print(str(problem), style="yellow" if problem.is_note else "red", markup=False)
    return all(problem.is_note for problem in problems)
