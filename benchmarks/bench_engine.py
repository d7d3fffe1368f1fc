"""Closed-loop load on the engine alone, through `quire.LLM`, token ids in and out: no HTTP, no text prompts.

    quire bench engine [--shape SHAPE] [--model DIR] [--cases FILE] [--rows N ...]
                       [--json OUT] [--settings KEY=VALUE ...]

One JSON line per row of the table of cases (docs/benchmarks.md), the same rows, prompts and keys that
benchmarks/vllm_engine.py prints for vLLM. --shape says which rows and, without --model, which model: 8b,
1b and 30b-a3b are made on the spot with random weights, quire-8m is the embedded one with a table that a CPU
can do.
--settings are those of model.json, e.g. ``max_num_batched_tokens=4096``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from quire import LLM, SamplingParams, StreamOutput
from quire.errors import EngineError
from quire_options import (
    add_options,
    cases_of,
    max_id_of,
    model_folder,
    settings_of,
    versions,
    write_rows,
)
from workload import MAX_ID, Case, Record, check_complete, figures, fresh_cache_salt, prompts, warm_up


def run_case(llm: LLM, tag: str, case: Case, max_id: int = MAX_ID) -> dict[str, Any]:
    """`case.concurrency` requests open at any time until all have ended. The clock of a request starts before
    its prompt is handed over and is read when step() has returned its tokens."""
    waiting = iter(prompts(case, max_id))
    params = SamplingParams(
        temperature=0,
        max_tokens=case.output_tokens,
        min_tokens=case.output_tokens,
        ignore_eos=True,
        cache_salt=fresh_cache_salt(),
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
    running[output.request_id].add(now, len(output.token_ids))
    if output.finish_reason:
        finished.append(running.pop(output.request_id))


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows: of the start, of the warm-up, of the cases."""
    cases = cases_of(options)
    tag = options.tag or f"quire-{options.shape.removeprefix('quire-')}"
    with model_folder(options.shape, options.model) as model:
        settings = settings_of(options.shape, options.settings, model)
        max_id = max_id_of(model)
        began = time.perf_counter()
        llm = LLM(str(model), **settings)
        seconds = round(time.perf_counter() - began, 1)
        yield {"tag": "startup", "s": seconds, "versions": versions(), "settings": settings}
        yield run_case(llm, "warm-up", warm_up(options.shape), max_id)
        for case in cases:
            yield run_case(llm, tag, case, max_id)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="quire bench engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--tag", help="the rows' tag; default: quire-SHAPE")
    options = parser.parse_args()
    write_rows("bench engine", run(options), options.json)


if __name__ == "__main__":
    main()
