"""The load of bench_engine.py through Triton's ensemble: text in and out, gRPC streaming, perf_analyzer.

    quire bench serve [--shape SHAPE] [--model DIR] [--cases FILE] [--rows N ...] [--json OUT]
                      [--settings KEY=VALUE ...] [--engine ENGINE.json] [--url HOST:PORT]

Starts a tritonserver with the model repository's ensemble on free ports (--url: uses one that runs, on a
model of word_model.py), lets NVIDIA's perf_analyzer keep as many streams open as the row says, and prints one
JSON line per row from the times that it recorded. Rates are from the first request to the last response;
gaps are between two responses of a request. --engine is what `quire bench engine --json` wrote: each row then
says which share of the engine's own rate arrives (`of_engine`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from quire.errors import ServerError
from quire.model_path import data_folder
from quire.triton.perf_analyzer import find_perf_analyzer, recorded_requests
from quire.triton.server import TritonServer
from quire_options import add_options, cases_of, max_id_of, model_folder, settings_of, write_rows
from word_model import text_of
from workload import (
    Case,
    case_key,
    fresh_cache_salt,
    percentile,
    prompts,
    same_case,
    share_of_engine,
    warm_up,
)

ENSEMBLE = "ensemble"


class PerfAnalyzer:
    """NVIDIA's load tool against one server; its files go to `work`."""

    def __init__(self, url: str, work: Path, max_threads: int, timeout: float = 1800) -> None:
        """timeout: seconds that a case may take; perf_analyzer was seen to hang."""
        self._executable, environment = find_perf_analyzer(work / "lib")
        self._environment = environment
        self._url = url
        self._work = work
        self._max_threads = max_threads
        self._timeout = timeout

    def run(self, case: Case, max_id: int) -> list[dict[str, Any]]:
        """The requests of the profile that it exports."""
        load, profile = self._work / "load.json", self._work / "profile.json"

        def write_load() -> None:
            load.write_text(json.dumps({"data": requests_of(case, max_id, fresh_cache_salt())}), "utf-8")

        command = [
            str(self._executable), "-m", ENSEMBLE, "-i", "grpc", "--async", "--streaming", "-u", self._url,
            "--input-data", str(load), "--concurrency-range", str(case.concurrency),
            "--request-count", str(case.requests), "--profile-export-file", str(profile),
            "--max-threads", str(self._max_threads),
        ]  # fmt: skip
        return recorded_requests(command, self._environment, profile, self._timeout, write_load)


def requests_of(case: Case, max_id: int, cache_salt: str) -> list[dict[str, Any]]:
    """perf_analyzer's input data: the prompts of bench_engine.py as words, each a tensor of one element."""
    asked = {
        "max_tokens": case.output_tokens,
        "min_tokens": case.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "cache_salt": cache_salt,
    }
    fields = {"stream": True, "return_num_output_tokens": True, "sampling_parameters": json.dumps(asked)}
    return [
        {
            name: {"content": [value], "shape": [1]}
            for name, value in {"text_input": text_of(ids), **fields}.items()
        }
        for ids in prompts(case, max_id)
    ]


def figures(tag: str, case: Case, requests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of results, from the requests of a profile; its times are in ns."""
    complete = [
        request
        for request in requests
        if sum(output["num_output_tokens"] for output in request["response_outputs"]) == case.output_tokens
    ]
    # More requests than prompts would repeat prompts, which are then in the prefix cache.
    if not len(complete) == len(requests) == case.requests:
        raise ServerError(
            f"{case}: {len(complete)} of {len(requests)} requests got {case.output_tokens} tokens;"
            f" allowed: all of {case.requests}"
        )
    began = min(request["timestamp"] for request in complete)
    seconds = (max(request["response_timestamps"][-1] for request in complete) - began) / 1e9
    first = [(request["response_timestamps"][0] - request["timestamp"]) / 1e6 for request in complete]
    gaps = [(b - a) / 1e6 for request in complete for a, b in pairwise(request["response_timestamps"])]
    num_responses = sum(len(request["response_timestamps"]) for request in complete)
    return {
        "tag": tag,
        **case_key(case),
        "s": round(seconds, 2),
        "out_tok_s": round(len(complete) * case.output_tokens / seconds, 1),
        "responses_s": round(num_responses / seconds, 1),
        "ttft_p50_ms": round(percentile(first, 50), 2),
        "ttft_p99_ms": round(percentile(first, 99), 2),
        "gap_p50_ms": round(percentile(gaps, 50), 3),
        "gap_p99_ms": round(percentile(gaps, 99), 3),
    }


def with_share(row: dict[str, Any], engine: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row, with its part of the engine's own rate when that was measured. Raises ValueError for a part
    that cannot be."""
    for other in engine:
        if "prompt" in other and other["tag"] != "warm-up" and same_case(row, other):
            return row | {"of_engine": share_of_engine(row, other)}
    return row


def make_repository(folder: Path, settings: dict[str, Any]) -> Path:
    """A copy of the model repository that serves a model with `settings`."""
    source = data_folder("model_repository")
    assert source, "a source checkout has one"
    shutil.copytree(source, folder)
    (folder / "generation" / "1" / "model.json").write_text(json.dumps(settings), "utf-8")
    return folder


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows: of the start, of the warm-up, of the cases."""
    cases = cases_of(options)
    engine = json.loads(options.engine.read_text("utf-8")) if options.engine else []
    with (
        model_folder(options.shape, options.model) as model,
        tempfile.TemporaryDirectory(prefix="quire-bench-") as name,
    ):
        work = Path(name)
        max_id = max_id_of(model)
        if options.url:
            yield from run_cases(
                options, PerfAnalyzer(options.url, work, options.max_threads), cases, max_id, engine
            )
            return
        settings = settings_of(options.shape, options.settings, model)
        began = time.perf_counter()
        with TritonServer(
            make_repository(work / "models", {"model": str(model), **settings}), start_timeout=600
        ) as server:
            yield {"tag": "startup", "s": round(time.perf_counter() - began, 1), "settings": settings}
            perf_analyzer = PerfAnalyzer(server.grpc_url, work, options.max_threads)
            yield from run_cases(options, perf_analyzer, cases, max_id, engine)


def run_cases(
    options: argparse.Namespace,
    perf_analyzer: PerfAnalyzer,
    cases: Sequence[Case],
    max_id: int,
    engine: Sequence[dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    case = warm_up(options.shape)
    yield figures("warm-up", case, perf_analyzer.run(case, max_id))
    tag = f"serve-{options.shape.removeprefix('quire-')}"
    for case in cases:
        yield with_share(figures(tag, case, perf_analyzer.run(case, max_id)), engine)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="quire bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--engine", type=Path, help="rows of the engine alone, to compare with")
    parser.add_argument("--url", help="gRPC address of a server that runs; default: one is started")
    parser.add_argument("--max-threads", type=int, default=16, help="of perf_analyzer")
    options = parser.parse_args()
    write_rows("bench serve", run(options), options.json)


if __name__ == "__main__":
    main()
