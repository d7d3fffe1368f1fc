"""Closed-loop load on the engine alone, through `quire.LLM`, token ids in and out: no HTTP, no text prompts.

    quire bench engine [--shape 8b|1b|quire-8m] [--model DIR] [--cases FILE] [--rows N ...] [--json OUT]
                       [--settings KEY=VALUE ...]

One JSON line per row of the table of cases (docs/benchmarks.md), the same rows, prompts and keys that
benchmarks/vllm_engine.py prints for vLLM. --shape says which rows and, without --model, which model: 8b and
1b are made on the spot with random weights, quire-8m is the embedded one with a table that a CPU can do.
--settings are those of model.json, e.g. ``max_num_batched_tokens=4096``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import word_model
from quire import LLM, EngineConfig, SamplingParams, StreamOutput
from quire.errors import EngineError, QuireError
from workload import (
    MAX_ID,
    SHAPES,
    Case,
    Record,
    check_complete,
    choose_rows,
    figures,
    load_cases,
    prompts,
    warm_up,
)

# As vllm_engine.py has them; a later --settings wins.
SETTINGS = {"max_model_len": 16384, "max_num_seqs": 256, "gpu_memory_utilization": 0.85}


def run_case(llm: LLM, tag: str, case: Case, max_id: int = MAX_ID) -> dict[str, Any]:
    """`case.concurrency` requests open at any time until all have ended. The clock of a request starts before
    its prompt is handed over and is read when step() has returned its tokens."""
    waiting = iter(prompts(case, max_id))
    params = SamplingParams(
        temperature=0, max_tokens=case.output_tokens, min_tokens=case.output_tokens, ignore_eos=True
    )
    running: dict[int, Record] = {}
    finished: list[Record] = []

    def add_one() -> None:
        prompt = next(waiting, None)
        if prompt is not None:
            record = Record(time.perf_counter())
            running[llm.add_request(prompt, params)] = record

    began = time.perf_counter()
    for _ in range(case.concurrency):
        add_one()
    while running:
        outputs = llm.step()
        now = time.perf_counter()
        for output in outputs:
            take(output, now, running, finished)
            if output.finish_reason:
                add_one()
    seconds = time.perf_counter() - began
    check_complete(case, finished)
    return figures(tag, case, seconds, finished)


def take(output: StreamOutput, now: float, running: dict[int, Record], finished: list[Record]) -> None:
    """Count what a step gave to a request."""
    if output.finish_reason == "error":
        raise EngineError(output.error)
    record = running[output.request_id]
    record.add(now, len(output.token_ids))
    if output.finish_reason:
        finished.append(running.pop(output.request_id))


def settings_of(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """The settings of model.json: defaults that this engine knows, random weights where there are none."""
    settings: dict[str, Any] = {}
    if options.shape != "quire-8m":
        settings = {name: value for name, value in SETTINGS.items() if name in EngineConfig.model_fields}
    if not list(model.glob("*.safetensors")):
        settings["load_format"] = "dummy"
    for item in options.settings:
        name, is_given, value = item.partition("=")
        if not is_given:
            raise SystemExit(f"--settings: got {item!r}; allowed: KEY=VALUE, e.g. max_num_seqs=128")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


@contextmanager
def model_folder(shape: str, model: Path | None) -> Iterator[Path]:
    """`model`, else a folder of the shape that lives as long as this."""
    if model:
        yield model.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        yield word_model.make(shape, Path(folder))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="quire bench engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="quire-8m", help="default: quire-8m")
    parser.add_argument("--model", type=Path, help="a model folder; default: made for the shape")
    parser.add_argument("--cases", type=Path, help="a table of cases; default: benchmarks/cases.json")
    parser.add_argument("--rows", type=int, nargs="*", help="rows of the table, from 0; default: all")
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    parser.add_argument("--tag", help="the rows' tag; default: quire-SHAPE")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of model.json")
    return parser.parse_args(arguments)


def versions() -> dict[str, str]:
    """Of what is measured here."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    try:
        quire = version("quire")
    except PackageNotFoundError:
        quire = "source checkout"
    return {"quire": quire, "torch": torch.__version__, "python": platform.python_version()}


def run(options: argparse.Namespace, model: Path) -> Iterator[dict[str, Any]]:
    """What main() prints: the start, then the rows."""
    cases = choose_rows(load_cases(options.shape, options.cases), options.rows)
    vocab_size = json.loads((model / "config.json").read_text("utf-8"))["vocab_size"]
    settings = settings_of(options, model)
    began = time.perf_counter()
    llm = LLM(str(model), **settings)
    seconds = round(time.perf_counter() - began, 1)
    yield {"tag": "startup", "s": seconds, "versions": versions(), "settings": settings}
    max_id = min(MAX_ID, vocab_size)
    tag = options.tag or f"quire-{options.shape.removeprefix('quire-')}"
    yield run_case(llm, "warm-up", warm_up(options.shape), max_id)
    for case in cases:
        yield run_case(llm, tag, case, max_id)


def main() -> None:
    options = parse()
    rows = []
    try:
        with model_folder(options.shape, options.model) as model:
            for row in run(options, model):
                print(json.dumps(row), flush=True)
                rows.append(row)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    except (QuireError, ValueError) as error:
        sys.exit(f"bench engine: {error}")


if __name__ == "__main__":
    main()
