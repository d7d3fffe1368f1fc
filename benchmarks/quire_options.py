"""What bench_engine.py and bench_serve.py share: options, the model's folder and settings, where rows go."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import word_model
from quire import EngineConfig
from quire.errors import QuireError
from workload import MAX_ID, SHAPES, Case, choose_rows, load_cases, settings_of_shape

# The settings of vllm_engine.py; --settings wins.
SETTINGS = {"max_model_len": 16384, "max_num_seqs": 256, "gpu_memory_utilization": 0.85}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="quire-8m", help="default: quire-8m")
    parser.add_argument("--model", type=Path, help="a model folder; default: made for the shape")
    parser.add_argument("--cases", type=Path, help="a table of cases; default: benchmarks/cases.json")
    parser.add_argument("--rows", type=int, nargs="*", help="rows of the table, from 0; default: all")
    parser.add_argument("--json", type=Path, help="also write all rows to this file")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of model.json")


def cases_of(options: argparse.Namespace) -> list[Case]:
    return choose_rows(load_cases(options.shape, options.cases), options.rows)


def settings_of(shape: str, given: Iterable[str], model: Path) -> dict[str, Any]:
    """The settings of model.json: those of the comparison as far as this engine knows them, random weights
    where there are none, and what was given."""
    settings: dict[str, Any] = {}
    if shape != "quire-8m":
        settings = {name: value for name, value in SETTINGS.items() if name in EngineConfig.model_fields}
        settings |= settings_of_shape(shape)
    if not list(model.glob("*.safetensors")):
        settings["load_format"] = "dummy"
    for item in given:
        name, is_given, value = item.partition("=")
        if not is_given:
            raise ValueError(f"--settings: got {item!r}; allowed: KEY=VALUE, e.g. max_num_seqs=128")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def max_id_of(model: Path) -> int:
    """The end of the range of ids in prompts."""
    return min(MAX_ID, json.loads((model / "config.json").read_text("utf-8"))["vocab_size"])


@contextmanager
def model_folder(shape: str, model: Path | None) -> Iterator[Path]:
    """`model`, else a folder of the shape that lives as long as this."""
    if model:
        yield model.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        yield word_model.make(shape, Path(folder))


def versions() -> dict[str, str]:
    """Versions of what is measured here."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    try:
        quire = version("quire")
    except PackageNotFoundError:
        quire = "source checkout"
    return {"quire": quire, "torch": torch.__version__, "python": platform.python_version()}


def write_rows(name: str, rows: Iterable[dict[str, Any]], file: Path | None) -> None:
    """Print each row when it comes, and keep the file up to date. An error of ours ends the program, and so
    does SIGTERM, in order: a server that was started is stopped."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    written: list[dict[str, Any]] = []
    try:
        for row in rows:
            print(json.dumps(row), flush=True)
            written.append(row)
            if file:
                file.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    except (QuireError, ValueError) as error:
        sys.exit(f"{name}: {error}")
