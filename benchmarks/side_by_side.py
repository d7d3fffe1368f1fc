"""vLLM and Quire on one GPU in one call: the same rows, one after the other, and the ratio of each.

    python benchmarks/side_by_side.py RESULTS.json [--shapes 8b 1b] [--rows N ...] [--sides vllm quire serve]
                                      [--vllm-path FOLDER] [--time-limit SECONDS]

Each side is a process of its own: `vllm` benchmarks/vllm_engine.py, `quire` benchmarks/bench_engine.py,
`serve` benchmarks/bench_serve.py (Quire through Triton). RESULTS.json gets a new entry for each shape and is
written after every row, so that what was measured survives a call that is cut off; a later call adds to it.
benchmarks/plot.py makes the plots of it, `make docs` the tables of README.md and docs/numbers.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import report
import word_model
from workload import load_cases, same_case

FOLDER = Path(__file__).resolve().parent
SIDES = ("vllm", "quire", "serve")
# vLLM's extra kernels are not needed for a dense model, and nothing may be downloaded while measuring.
_VLLM_ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "FLASHINFER_DISABLE_VERSION_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


class Results:
    """The file: a list of runs, each one shape in one call on one machine."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._runs: list[dict[str, Any]] = (
            json.loads(path.read_text("utf-8"))["runs"] if path.exists() else []
        )

    def start(self, shape: str, **about: Any) -> dict[str, Any]:
        run: dict[str, Any] = {"date": now(), "shape": shape, **about, "sides": {}}
        self._runs.append(run)
        return run

    def save(self) -> None:
        runs = [run for run in self._runs if any(side["rows"] for side in run["sides"].values())]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps({"runs": runs}, indent=1) + "\n", "utf-8")
        temporary.replace(self._path)


def measure(
    side: str, command: Sequence[str], environment: dict[str, str], deadline: float, log: Path
) -> Iterator[dict[str, Any]]:
    """The rows that a side prints, as they come. It is ended at the deadline; what it writes beside rows goes
    to `log`, and its end is shown when it fails."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    ended = threading.Timer(max(0.0, deadline - time.monotonic()), stop, (process,))
    ended.start()
    assert process.stdout
    try:
        for line in process.stdout:
            if line.startswith(b'{"tag"'):
                yield json.loads(line)
        process.wait()
    finally:
        ended.cancel()
        stop(process)
        process.stdout.close()
    if process.returncode:
        reason = "time limit" if time.monotonic() >= deadline else f"status {process.returncode}"
        print(f"{side}: ended by {reason}; the end of {log}:", flush=True)
        print("\n".join(log.read_text("utf-8", "replace").splitlines()[-12:]), flush=True)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started, which hold memory of the GPU."""
    for number in (15, 9):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(40)  # a tritonserver is stopped in order
        except subprocess.TimeoutExpired:
            continue


def command_of(side: str, shape: str, model: Path, options: argparse.Namespace, work: Path) -> list[str]:
    if side == "vllm":
        script, more, settings = "vllm_engine.py", [str(model)], options.vllm_settings
    elif side == "quire":
        script, more = "bench_engine.py", ["--model", str(model)]
        settings = options.quire_settings
    else:
        script, more = "bench_serve.py", ["--model", str(model), "--engine", str(work / "engine.json")]
        settings = options.quire_settings
    command = [sys.executable, str(FOLDER / script), *more, "--shape", shape]
    if options.cases:
        command += ["--cases", str(options.cases)]
    if options.rows is not None:
        command += ["--rows", *map(str, options.rows)]
    return command + (["--settings", *settings] if settings else [])


def environment_of(side: str, options: argparse.Namespace) -> dict[str, str]:
    if side != "vllm":
        return {}
    # vLLM and Quire need different versions of some packages: nothing of ours is in vLLM's path.
    path = {"PYTHONPATH": str(options.vllm_path.resolve())} if options.vllm_path else {}
    return _VLLM_ENVIRONMENT | path


def machine() -> dict[str, Any]:
    """The card, its driver and the processor's cores."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {"card": "none", "cores": os.cpu_count()}
    card, driver, memory = (part.strip() for part in text.splitlines()[0].split(","))
    return {"card": card, "driver": driver, "memory": memory, "cores": os.cpu_count()}


def commit() -> str:
    """Commit of the sources that run; empty where they are no checkout."""
    command = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def ratio_line(row: dict[str, Any], other: dict[str, Any]) -> str:
    """Quire beside vLLM in one line: rate, first token and gap as ratios, above 1 where Quire is better."""
    ratios = {
        "out tok/s": row["out_tok_s"] / other["out_tok_s"],
        "TTFT p50": other["ttft_p50_ms"] / row["ttft_p50_ms"],
        "ITL p50": other["itl_p50_ms"] / row["itl_p50_ms"],
    }
    text = ", ".join(f"{name} {ratio:.2f} x" for name, ratio in ratios.items())
    return f"{row['prompt']}/{row['out']} conc. {row['conc']} shared {row['shared']}: {text}"


def run_shape(shape: str, options: argparse.Namespace, results: Results, work: Path, deadline: float) -> None:
    model = options.model or word_model.make(shape, work / shape)
    run = results.start(shape, machine=machine(), commit=options.commit)
    (work / "engine.json").write_text("[]", "utf-8")  # for serve, where quire is left out or fails
    for side in options.sides:
        if time.monotonic() >= deadline:
            print(f"{side} {shape}: not started, time limit", flush=True)
            continue
        rows: list[dict[str, Any]] = []
        run["sides"][side] = {"rows": rows}
        command = command_of(side, shape, model, options, work)
        environment = environment_of(side, options)
        log = options.logs / f"{side}-{shape}.log"
        for row in measure(side, command, environment, deadline, log):
            print(json.dumps(row), flush=True)
            if row["tag"] == "startup":
                run["sides"][side] |= {"date": now(), "startup_s": row["s"], "settings": row["settings"]}
                run["sides"][side] |= {"versions": row["versions"]} if "versions" in row else {}
            elif row["tag"] != "warm-up":
                rows.append(row)
                compare(run, side, row)
            results.save()
        if side == "quire":
            (work / "engine.json").write_text(json.dumps(rows), "utf-8")


def compare(run: dict[str, Any], side: str, row: dict[str, Any]) -> None:
    """Print the ratio once the same row of vLLM is there."""
    if side != "quire":
        return
    for other in run["sides"].get("vllm", {"rows": []})["rows"]:
        if same_case(row, other):
            print(f"  quire / vllm  {ratio_line(row, other)}", flush=True)


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["8b", "1b"])
    parser.add_argument("--rows", type=int, nargs="+", help="rows of the shape's table, from 0; default: all")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["vllm", "quire"])
    parser.add_argument("--cases", type=Path, help="a table of cases; default: benchmarks/cases.json")
    parser.add_argument("--model", type=Path, help="a model folder; default: made for each shape")
    parser.add_argument("--vllm-path", type=Path, help="the folder that vLLM is installed in")
    parser.add_argument("--vllm-settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--quire-settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--time-limit", type=float, default=1e9, help="seconds; what is not done then is left"
    )
    parser.add_argument("--commit", default=commit(), help="of Quire's sources; default: what git says")
    parser.add_argument(
        "--logs", type=Path, help="folder for what the sides write; default: beside the results"
    )
    options = parser.parse_args()
    options.logs = options.logs or options.results.resolve().parent
    for shape in options.shapes:
        load_cases(shape, options.cases)  # a mistake shows before anything is started
    return options


def main() -> None:
    options = parse()
    deadline = time.monotonic() + options.time_limit
    options.logs.mkdir(parents=True, exist_ok=True)
    results = Results(options.results)
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as name:
        for shape in options.shapes:
            run_shape(shape, options, results, Path(name), deadline)
    results.save()
    print(report.markdown(report.load_runs(options.results)), end="")


if __name__ == "__main__":
    main()
