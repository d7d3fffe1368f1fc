"""`quire migrate`: a model repository of Triton's vLLM backend or of TensorRT-LLM becomes one of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from quire.cli.common import console, errors_as_text, packaged_repository
from quire.errors import InvalidArgument, describe
from quire.migrate.findings import NEEDED, Verdict
from quire.migrate.move import Move
from quire.migrate.repository import Plan, plan, write

_STYLES = {
    Verdict.TAKEN: "green",
    Verdict.NEUTRAL: "dim",
    Verdict.MISSING: "red",
    Verdict.UNKNOWN: "red",
    Verdict.IGNORED: "yellow",
}


def migrate(
    repository: Annotated[Path, typer.Argument(help="The repository, or one model's folder, to move.")],
    output: Annotated[
        Path, typer.Option(help="The new repository: made if need be, never overwritten.")
    ] = Path("model_repository"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="Weights in place of what the repository names: a folder or a Hugging Face id.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="A setting that may go without a counterpart; several times."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would become of it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Make a repository of ours from one of Triton's vLLM backend or TensorRT-LLM. Models keep the names that
    clients call; each setting is taken, is neutral, or has no counterpart. Nothing is written, and the
    status is 1, while one has none that --ignore does not name."""
    ignored = ignore or []
    with errors_as_text():
        packaged = packaged_repository()
        _require_apart(repository, output)
        try:
            planned = plan(packaged, repository, ignored=ignored, weights=_weights(model or []))
        except OSError as error:  # a folder that this user may not read
            given = f"{error.filename or repository}: {error.strerror}"
            raise InvalidArgument("REPOSITORY", given, "folders to read") from None
        _require_used(ignored, planned)
        names: list[str] = []
        is_written = not planned.open_keys and not dry_run
        if is_written:
            names = write(packaged, planned.moves, output)
    if as_json:
        print(json.dumps(_as_json(planned, output, names if is_written else None), indent=2))
    else:
        _show(planned, output, names, dry_run)
    if planned.open_keys:
        raise typer.Exit(1)


def _weights(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, value = (name, value) if equals else ("", text)
        if name in found or not value:
            raise InvalidArgument("--model", describe(text), "NAME=MODEL, each name once")
        found[name] = value
    return found


def _require_apart(repository: Path, output: Path) -> None:
    source, target = repository.resolve(), output.resolve()
    if source == target or source in target.parents:
        raise InvalidArgument("--output", f"{output}, which is what moves", "another folder")


def _require_used(ignored: Sequence[str], planned: Plan) -> None:
    """A key that nothing was ignored for is a slip of the pen."""
    found = [finding for move in planned.moves for finding in move.findings.found]
    used = {finding.key for finding in found if finding.verdict is Verdict.IGNORED}
    for key in ignored:
        if key not in used:
            allowed = ", ".join([*used, *planned.open_keys]) or "none: each setting has a counterpart"
            raise InvalidArgument("--ignore", describe(key), allowed)


def _show(planned: Plan, output: Path, names: Sequence[str], dry_run: bool) -> None:
    for move in planned.moves:
        console.print(f"{', '.join(move.names)} ({move.kind})", style="bold", markup=False)
        console.print(_table(move))
    for name, what in planned.left.items():
        note = "copy it, where Triton has its backend" if what != "Quire's own" else "copy it"
        console.print(f"{name}: not moved: {what}; {note}", style="yellow", markup=False)
    if keys := planned.open_keys:
        flags = " ".join(f"--ignore {key}" if key != NEEDED else "--model [NAME=]MODEL" for key in keys)
        console.print(f"nothing was written; to move all the same: {flags}", style="red", markup=False)
    elif dry_run:
        console.print("nothing was written: --dry-run")
    else:
        console.print(f"{output}: {', '.join(names)}", style="green", markup=False)
        console.print(f"next: quire check {output} && quire serve --repository {output}", markup=False)


def _table(move: Move) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("SETTING", "VALUE", "", "NOTE"):
        table.add_column(title, overflow="fold", no_wrap=title in ("SETTING", ""))
    for finding in move.findings.found:
        style = _STYLES[finding.verdict]
        cells = (finding.key, finding.value, finding.verdict.value, finding.note)
        table.add_row(*map(Text, cells), style=style)
    return table


def _as_json(planned: Plan, output: Path, names: Sequence[str] | None) -> dict[str, Any]:
    return {
        "output": str(output),
        "written": names,
        "models": [
            {
                "names": move.names,
                "kind": move.kind,
                "sources": list(map(str, move.sources)),
                "settings": move.settings,
                "findings": [
                    vars(finding) | {"verdict": finding.verdict.value} for finding in move.findings.found
                ],
            }
            for move in planned.moves
        ],
        "left": planned.left,
        "open": planned.open_keys,
    }
