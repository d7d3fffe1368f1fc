"""Writes every generated file of the repository: `make docs`. With --check, as in `make lint`, only compares.

    python docs/generate.py [--check] [--root FOLDER]

The pages about fields and settings and the C++ header come from the tables in python/quire, the stub files
from the compiled modules, the tables of the comparison with vLLM from benchmarks/results, that of metrics
from engine_stats.def. model_configs.py adds outputs and their fields to model_repository.
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

STATS = "cpp/include/quire/engine_stats.def"
# From the text that a file has, for files of which only a part is generated, to the text that it must have.
Generator = Callable[[str], str]


def readme(page: str) -> str:
    runs = report.load_runs(report.RESULTS)
    page = report.with_part(page, "summary", report.summary(runs))
    return report.with_part(page, "rows", report.chosen_rows(runs))


def numbers(page: str) -> str:
    return report.with_part(page, "table", report.markdown(report.load_runs(report.RESULTS)))


def metrics(page: str) -> str:
    """The rows of QUIRE_STAT(type, name, kind, series, meaning)."""
    text = (ROOT / STATS).read_text("utf-8").replace('"\n           "', "")
    rows = re.findall(r'^QUIRE_STAT\(\w+, \w+, k(\w+), "([\w:]+)",\s+"(.+)"\)$', text, re.MULTILINE)
    lines = [f"| `{series}` | {kind.lower()} | generation | {meaning} |" for kind, series, meaning in rows]
    head = ["| series | kind | model | meaning |", "|---|---|---|---|"]
    return report.with_part(page, "series", "\n".join([*head, *lines, ""]), STATS)


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
