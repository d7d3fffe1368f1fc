"""Plots of what side_by_side.py wrote, one per shape: rate and gap against concurrency, vLLM and Quire.

    python benchmarks/plot.py [RESULTS.json] [--folder benchmarks/results]

Writes FOLDER/SHAPE.svg from the rows of 512 prompt and 256 output tokens, the only case with many
concurrencies. The same results give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from report import RESULTS, Pair, load_runs, newest_pairs

PROMPT, OUT = 512, 256
COLOURS = {"vLLM": "#8a8a8a", "Quire": "#0b6e4f"}
PANELS = (("out_tok_s", "output tokens/s"), ("itl_p50_ms", "ITL p50, ms"), ("ttft_p50_ms", "TTFT p50, ms"))


def series(pairs: list[Pair], side: str, figure: str) -> tuple[list[int], list[float]]:
    """Concurrencies and values of one side, in ascending order."""
    rows: list[dict[str, Any]] = [pair.vllm if side == "vLLM" else pair.quire for pair in pairs]
    points = sorted((row["conc"], row[figure]) for row in rows)
    return [x for x, _ in points], [y for _, y in points]


def plot(shape: str, pairs: list[Pair], file: Path) -> None:
    with mpl.rc_context({"svg.hashsalt": "quire", "svg.fonttype": "none"}):
        draw(shape, pairs).savefig(file, metadata={"Date": None})


def draw(shape: str, pairs: list[Pair]) -> Figure:
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for side, colour in COLOURS.items():
            x, y = series(pairs, side, name)
            axes.plot(x, y, marker="o", color=colour, label=side)
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("concurrent requests")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    card, date = pairs[-1].card, pairs[-1].run["date"][:10]
    figure.suptitle(f"Llama {shape.upper()}, {PROMPT} prompt and {OUT} output tokens, {card}, {date}")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--folder", type=Path, default=RESULTS.parent)
    options = parser.parse_args()
    pairs = newest_pairs(load_runs(options.results))
    options.folder.mkdir(parents=True, exist_ok=True)
    for shape in dict.fromkeys(pair.shape for pair in pairs):
        chosen = [
            pair
            for pair in pairs
            if pair.shape == shape and (pair.quire["prompt"], pair.quire["out"]) == (PROMPT, OUT)
        ]
        # One card per plot: that of the newest row.
        chosen = [pair for pair in chosen if pair.card == chosen[-1].card]
        if chosen:
            file = options.folder / f"{shape}.svg"
            plot(shape, chosen, file)
            print(file)


if __name__ == "__main__":
    main()
