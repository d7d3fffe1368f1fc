"""Writes every generated file of the repository: `make docs`. With --check, as in `make lint`, only compares.

    python docs/generate.py [--check] [--root FOLDER]

The pages about fields and settings and the C++ header come from the tables in python/quire, the stub files
from the compiled modules, the tables of the comparison with vLLM from benchmarks/results, that of metrics
from engine_metrics.def and server_metrics.def. model_configs.py adds outputs and their fields to
model_repository.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import _core_parts
import model_configs
import stubs
from quire import fields_header, request_docs, settings_docs

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import report  # noqa: E402  it is in benchmarks, a folder of programs

ENGINE_SERIES = "cpp/include/quire/engine_metrics.def"
SERVER_SERIES = "cpp/triton/server_metrics.def"
# From the text that a file has, for files of which only a part is generated, to the text that it must have.
Generator = Callable[[str], str]


def readme(page: str) -> str:
    runs = report.load_runs(report.RESULTS)
    page = report.with_part(page, "summary", report.summary(runs))
    return report.with_part(page, "rows", report.chosen_rows(runs))


def numbers(page: str) -> str:
    return report.with_part(page, "table", report.markdown(report.load_runs(report.RESULTS)))


def metrics(page: str) -> str:
    """The rows of both tables of series, and the buckets of histograms."""
    rows = [row for file in (ENGINE_SERIES, SERVER_SERIES) for row in series_rows(file)]
    lines = []
    for macro, values in rows:
        if macro == "QUIRE_BUCKETS":
            continue
        if macro in ("QUIRE_HISTOGRAM", "QUIRE_HISTOGRAM_SERIES"):
            series, label, buckets, meaning = values[1], "".join(values[2:-2]), *values[-2:]
            kind, role = "kHistogram", "kGeneration"
        elif macro == "QUIRE_SERVER_SERIES":
            _, kind, series, label, buckets, role, meaning = values
        else:
            kind, series, label, meaning = values[-4:]
            buckets, role = "kNone", "kGeneration"
        name = f"`{series}`" + (f" {label}" if label else "")
        of_buckets = "" if buckets == "kNone" else f", {buckets.removeprefix('k')}"
        lines.append(f"| {name} | {spoken(kind)}{of_buckets} | {spoken(role)} | {meaning} |")
    head = ["| series | kind, buckets | model | meaning |", "|---|---|---|---|"]
    page = report.with_part(page, "series", "\n".join([*head, *lines, ""]), "both tables of series")
    bounds = [(values[0], values[1:]) for macro, values in rows if macro == "QUIRE_BUCKETS"]
    sets = [f"| {name.removeprefix('k')} | {', '.join(values)} |" for name, values in bounds]
    lengths = "| Lengths | 1, 2, 5, 10, 20, 50, ... up to max_model_len |"
    sets = ["| buckets | upper bounds |", "|---|---|", *sets, lengths, ""]
    return report.with_part(page, "buckets", "\n".join(sets), ENGINE_SERIES)


def series_rows(file: str) -> list[tuple[str, list[str]]]:
    """Each row's macro and its arguments, strings without their quotes."""
    text = re.sub(r"^(//|#).*$", "", (ROOT / file).read_text("utf-8"), flags=re.MULTILINE)
    rows = []
    for macro, body in re.findall(r'^(QUIRE_[A-Z_]+)\(((?:[^()"]|"[^"]*")*)\)$', text, re.MULTILINE):
        values = [""]
        for quoted, word, comma in re.findall(r'"([^"]*)"|([\w.]+)|(,)', body):
            if comma:
                values.append("")
            values[-1] += quoted + word
        rows.append((macro, values))
    return rows


def spoken(name: str) -> str:
    return name.removeprefix("k").lower()


def stub(module: str) -> Generator:
    return lambda _: stubs.stub(importlib.import_module(module))


GENERATED: Mapping[str, Generator] = {
    "cpp/include/quire/fields.h": lambda _: fields_header.fields_header(),
    "docs/request_fields.md": lambda _: request_docs.docs_page(),
    "docs/settings.md": lambda _: settings_docs.docs_page(),
    "python/quire/_core.pyi": stub("quire._core"),
    "python/quire/_cuda.pyi": lambda _: stubs.stub(_core_parts.cuda),
    "tests/core_parts/_core_parts.pyi": stub("_core_parts"),
    "docs/metrics.md": metrics,
    "docs/numbers.md": numbers,
    "README.md": readme,
    **model_configs.MODEL_CONFIGS,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a file would change")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout whose files are written")
    options = parser.parse_args(arguments)
    status = 0
    for name, generate in GENERATED.items():
        file = options.root / name
        before = file.read_text("utf-8") if file.exists() else ""
        after = generate(before)
        if before == after:
            continue
        if options.check:
            print(f"{name}: not what its source generates; run: make docs", file=sys.stderr)
            status = 1
        else:
            file.write_text(after, "utf-8")
            print(name)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
