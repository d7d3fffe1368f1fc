"""The load of bench_engine.py on vLLM's AsyncLLM, in one process: token ids in and out, no HTTP, no text.

    PYTHONPATH=VLLM python benchmarks/vllm_engine.py MODEL_FOLDER --shape SHAPE [--rows N ...]
                                                     [--settings KEY=VALUE ...]

Needs vLLM (measured: 0.24.0), nothing of Quire but workload.py. Prints one JSON line per row.
benchmarks/side_by_side.py runs it in turn with our own engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from workload import (
    SHAPES,
    Case,
    Record,
    check_complete,
    choose_rows,
    figures,
    fresh_cache_salt,
    load_cases,
    prompts,
    settings_of_shape,
    warm_up,
)

SETTINGS = {
    "load_format": "dummy",
    "skip_tokenizer_init": True,
    "max_model_len": 16384,
    "max_num_seqs": 256,
    "gpu_memory_utilization": 0.85,
    "enable_prefix_caching": True,
    "disable_log_stats": True,
}


async def run_request(
    engine: AsyncLLM, request_id: str, prompt: list[int], cache_salt: str, params: SamplingParams
) -> Record:
    record = Record(time.perf_counter())
    inputs = {"prompt_token_ids": prompt, "cache_salt": cache_salt}
    async for output in engine.generate(inputs, params, request_id):
        record.add(time.perf_counter(), len(output.outputs[0].token_ids))
    return record


async def run_case(engine: AsyncLLM, tag: str, case: Case) -> dict[str, Any]:
    """`case.concurrency` clients; each sends its next request when its last one has ended."""
    waiting = iter(enumerate(prompts(case)))
    params = SamplingParams(
        temperature=0.0,
        max_tokens=case.output_tokens,
        min_tokens=case.output_tokens,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
        detokenize=False,
    )
    records: list[Record] = []
    cache_salt = fresh_cache_salt()
    began = time.perf_counter()

    async def client() -> None:
        for index, prompt in waiting:
            request_id = f"{tag}-{began}-{index}"
            records.append(await run_request(engine, request_id, prompt, cache_salt, params))

    await asyncio.gather(*(client() for _ in range(case.concurrency)))
    seconds = time.perf_counter() - began
    check_complete(case, records)
    return figures(tag, case, seconds, records)


def settings_of(shape: str, items: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = SETTINGS | settings_of_shape(shape)
    for item in items:
        name, _, value = item.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--shape", choices=[shape for shape in SHAPES if shape != "quire-8m"], required=True)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--rows", type=int, nargs="*")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="KEY=VALUE", help="vLLM's engine arguments"
    )
    options = parser.parse_args()
    cases = choose_rows(load_cases(options.shape, options.cases), options.rows)
    settings = settings_of(options.shape, options.settings)
    began = time.perf_counter()
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(options.model), **settings))
    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "python": platform.python_version()}
    seconds = round(time.perf_counter() - began, 1)
    print(
        json.dumps({"tag": "startup", "s": seconds, "versions": versions, "settings": settings}), flush=True
    )
    print(json.dumps(await run_case(engine, "warm-up", warm_up(options.shape))), flush=True)
    for case in cases:
        print(json.dumps(await run_case(engine, f"vllm-{options.shape}", case)), flush=True)
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
