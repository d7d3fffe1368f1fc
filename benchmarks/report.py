"""Reads what side_by_side.py wrote: the newest pair of each row, and the texts that the docs have from it.

    python benchmarks/report.py [RESULTS.json]            print the table

`make docs` writes the whole table into docs/numbers.md, and a sentence and five of its rows into README.md,
each between two marks. Only rows that both sides ran in one call are shown.
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
BEGIN = "<!-- {source}, {name}: begin -->"
END = "<!-- {source}, {name}: end -->"
# The rows of the README: shape, prompt tokens, output tokens, concurrency.
CHOSEN = (
    ("8b", 512, 256, 1),
    ("8b", 512, 256, 64),
    ("8b", 512, 256, 256),
    ("1b", 512, 256, 1),
    ("1b", 512, 256, 256),
)
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


def chosen_rows(runs: Iterable[dict[str, Any]]) -> str:
    """The rows of CHOSEN, in its order, on the card of the newest of them."""
    rows = [pair for case in CHOSEN for pair in newest_pairs(runs) if _name(pair) == case]
    if not rows:
        return NOTHING + "\n"
    card = max(rows, key=lambda pair: str(pair.run["date"])).card
    return _table([pair for pair in rows if pair.card == card])


def summary(runs: Iterable[dict[str, Any]]) -> str:
    """A list item per card: by how much Quire is ahead, and in how many cases."""
    pairs = newest_pairs(runs)
    lines = []
    for card in dict.fromkeys(pair.card for pair in pairs):
        here = [pair for pair in pairs if pair.card == card]
        ahead = sum(pair.ratio > 1 for pair in here)
        spans = []
        for shape in dict.fromkeys(pair.shape for pair in here):
            ratios = [pair.ratio for pair in here if pair.shape == shape]
            what = "" if spans else " vLLM's tokens per second"
            span = dict.fromkeys((f"{min(ratios):.2f}", f"{max(ratios):.2f}"))
            spans.append(f"{' to '.join(span)} times{what} with {shape.upper()}")
        lines.append(f"- **Fast.** {', '.join(spans)}; ahead in {ahead} of {len(here)} cases on one {card}.")
    return "\n".join(lines or [NOTHING]) + "\n"


def _name(pair: Pair) -> tuple[str, int, int, int] | None:
    """How CHOSEN calls the case; None for one whose prompts share a prefix."""
    row = pair.quire
    return None if row["shared"] else (pair.shape, row["prompt"], row["out"], row["conc"])


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


def with_part(page: str, name: str, text: str, source: str = "benchmarks/report.py") -> str:
    """The page with `text` between the marks of that name."""
    begin, end = (mark.format(source=source, name=name) for mark in (BEGIN, END))
    before, has_begin, rest = page.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"got a page without {begin} and {end}; allowed: a page with both, in this order")
    return f"{before}{begin}\n{text}{end}{after}"


def _case(row: Row) -> tuple[int, ...]:
    return tuple(row[name] for name in ("prompt", "out", "conc", "nreq", "shared"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    print(markdown(load_runs(parser.parse_args().results)), end="")


if __name__ == "__main__":
    main()
