"""Host time of one engine step without a model: schedule() + update() with all requests decoding.

    PYTHONPATH=python python benchmarks/bench_scheduler.py

Each step builds all Batch arrays, takes one sampled id per request, follows text boundaries and releases the
ids. The clock is read in Python around the two calls, so their binding costs are part of the figures. Prompts
have different lengths, so each step finds some requests in need of a block.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
from quire import _core

VOCAB_SIZE = 32_000
BLOCK_SIZE = 16


def running_core(num_requests: int, context: int, num_steps: int, stop: list[str]) -> _core.EngineCore:
    """A core in which all requests are past their prompts of `context` to 1.5 * `context` tokens."""
    rng = np.random.default_rng(0)
    texts = [f" t{i}".encode() for i in range(VOCAB_SIZE)]
    table = _core.TokenTable(_core.DecoderKind.BYTE_LEVEL, texts, [0] * VOCAB_SIZE)
    max_model_len = context * 3 // 2 + 4 * num_steps
    config = _core.EngineConfig(
        num_blocks=num_requests * (max_model_len // BLOCK_SIZE + 1),
        block_size=BLOCK_SIZE,
        max_model_len=max_model_len,
        vocab_size=VOCAB_SIZE,
        max_num_seqs=num_requests,
        max_num_batched_tokens=8192,
    )
    core = _core.EngineCore(config, table)
    params = _core.SamplingParams(ignore_eos=True, stop=stop)
    for request_id in range(num_requests):
        size = int(rng.integers(context, context * 3 // 2))
        core.add_request(request_id, rng.integers(0, VOCAB_SIZE, size).tolist(), params)
    while True:
        batch = core.schedule()
        is_decoding = batch.num_tokens == batch.num_sampled == num_requests
        core.update(np.zeros(batch.num_sampled, dtype=np.int32))
        if is_decoding:
            return core


def time_steps(core: _core.EngineCore, num_requests: int, num_steps: int) -> np.ndarray:
    """Microseconds of schedule() and of update() in each step, [num_steps, 2]."""
    rng = np.random.default_rng(1)
    sampled = [rng.integers(0, VOCAB_SIZE, num_requests).astype(np.int32) for _ in range(64)]
    times = np.empty((num_steps, 2))
    for step in range(num_steps):
        ids = sampled[step % len(sampled)]
        begin = time.perf_counter_ns()
        core.schedule()
        middle = time.perf_counter_ns()
        core.update(ids)
        end = time.perf_counter_ns()
        times[step] = (middle - begin) / 1e3, (end - middle) / 1e3
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[256, 1024])
    parser.add_argument(
        "--context", type=int, default=1024, help="shortest prompt; the longest has half more"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="the run with the lowest median is shown")
    args = parser.parse_args()

    goals = {256: 30, 1024: 120}
    print(
        f"{platform.machine()}, prompts of {args.context} tokens and more, {args.steps} steps; microseconds"
    )
    print("requests  stop strings  schedule  update  both: median     p99  goal")
    for num_requests in args.requests:
        for stop in ([], ["\n\n", "</answer>"]):
            runs = []
            for _ in range(args.repeats):
                core = running_core(num_requests, args.context, args.steps, stop)
                runs.append(time_steps(core, num_requests, args.steps))
            times = min(runs, key=lambda run: float(np.median(run.sum(axis=1))))
            schedule, update = np.median(times, axis=0)
            both = times.sum(axis=1)
            print(
                f"{num_requests:8}  {len(stop):12}  {schedule:8.1f}  {update:6.1f}  {np.median(both):12.1f}"
                f"  {np.percentile(both, 99):6.1f}  {goals.get(num_requests, '-'):>4}"
            )


if __name__ == "__main__":
    main()
