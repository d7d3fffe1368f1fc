"""Reads what side_by_side.py wrote: the newest pair of each row, a table of them, the README's copy of it.

    python benchmarks/report.py [RESULTS.json]            print the table
    python benchmarks/report.py [RESULTS.json] --readme   write it into README.md, between its two marks

Only rows that both sides ran in one call are shown. A test compares the README with the committed results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload import FOLDER, check_share, same_case

RESULTS = FOLDER / "results" / "side_by_side.json"
README = FOLDER.parent / "README.md"
BEGIN = "<!-- benchmarks/report.py: begin -->"
END = "<!-- benchmarks/report.py: end -->"
NOTHING = "No side-by-side run has been committed yet."

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One case on both engines, measured in one call."""

    shape: str
    run: dict[str, Any]  # of side_by_side.py
    vllm: Row
    quire: Row
    serve: Row | None  # Quire through Triton

    @property
    def ratio(self) -> float:
        """Quire's tokens per second over vLLM's."""
        return float(self.quire["out_tok_s"] / self.vllm["out_tok_s"])

    @property
    def card(self) -> str:
        return str(self.run["machine"]["card"])


def load_runs(path: Path) -> list[dict[str, Any]]:
    """Oldest first; none when the file does not exist. Raises ValueError for a row whose share through Triton
    cannot be."""
    runs: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["runs"] if path.exists() else []
    for run in runs:
        for row in run["sides"].get("serve", {"rows": []})["rows"]:
            check_share(row, row.get("of_engine", 0.0))
    return runs


def newest_pairs(runs: Iterable[dict[str, Any]]) -> list[Pair]:
    """For each card, shape and case the last call that has both sides, in the order in which cases came. The
    share through Triton is the last one of the case, which compares with an engine of its own call."""
    pairs: dict[tuple[Any, ...], Pair] = {}
    for run in runs:
        rows = {side: content["rows"] for side, content in run["sides"].items()}
        for quire in rows.get("quire", []):
            key = (run["machine"]["card"], run["shape"], *_case(quire))
            vllm = find(rows.get("vllm", []), quire)
            serve = find(rows.get("serve", []), quire)
            before = pairs.get(key)
            if vllm:
                serve = serve or (before.serve if before else None)
                pairs[key] = Pair(shape=run["shape"], run=run, vllm=vllm, quire=quire, serve=serve)
            elif before and serve:
                pairs[key] = Pair(
                    shape=before.shape, run=before.run, vllm=before.vllm, quire=before.quire, serve=serve
                )
    return list(pairs.values())


def find(rows: Iterable[Row], row: Row) -> Row | None:
    """The row of the same case."""
    return next((other for other in rows if same_case(row, other)), None)


def markdown(runs: Iterable[dict[str, Any]]) -> str:
    """A table per card, with what it was measured on."""
    pairs = newest_pairs(runs)
    if not pairs:
        return NOTHING + "\n"
    parts = []
    for card in dict.fromkeys(pair.card for pair in pairs):
        parts.append(_table([pair for pair in pairs if pair.card == card]))
    return "\n".join(parts)


def _table(pairs: list[Pair]) -> str:
    lines = [
        _caption(pairs),
        "",
        "| shape | prompt/out | conc. | vLLM tok/s | Quire tok/s | ratio | TTFT p50 ms | ITL p50 ms |"
        " through Triton |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for pair in pairs:
        vllm, quire = pair.vllm, pair.quire
        shared = f", {quire['shared']} shared" if quire["shared"] else ""
        share = f"{pair.serve['of_engine']:.0%}" if pair.serve and "of_engine" in pair.serve else ""
        cells = [
            pair.shape.upper(),
            f"{quire['prompt']}/{quire['out']}{shared}",
            str(quire["conc"]),
            f"{vllm['out_tok_s']:,.0f}",
            f"{quire['out_tok_s']:,.0f}",
            f"**{pair.ratio:.2f}**",
            f"{vllm['ttft_p50_ms']:.1f} → {quire['ttft_p50_ms']:.1f}",
            f"{vllm['itl_p50_ms']:.2f} → {quire['itl_p50_ms']:.2f}",
            share,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _caption(pairs: list[Pair]) -> str:
    machine = pairs[0].run["machine"]
    dates = sorted({pair.run["date"][:10] for pair in pairs})
    versions = pairs[0].run["sides"]["vllm"].get("versions", {})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"{machine['card']}, driver {machine.get('driver', 'unknown')}, {when};"
        f" vLLM {versions.get('vllm', 'unknown')}, torch {versions.get('torch', 'unknown')}."
        " vLLM → Quire in the columns of times."
    )


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README}: allowed: a text with {BEGIN} and {END}")
    return f"{before}{begin}\n{table}{end}{after}"


def _case(row: Row) -> tuple[int, ...]:
    return tuple(row[name] for name in ("prompt", "out", "conc", "nreq", "shared"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    options = parser.parse_args()
    table = markdown(load_runs(options.results))
    if options.readme:
        README.write_text(with_table(README.read_text("utf-8"), table), "utf-8")
    else:
        print(table, end="")


if __name__ == "__main__":
    main()
