"""Host time of one engine step without a model: schedule() + pack() + update() with all requests decoding.

    PYTHONPATH=python python benchmarks/bench_scheduler.py

Each step builds all Batch arrays, writes them into one buffer as a device needs them, takes one sampled id
per request, follows text boundaries and releases the ids. With two batches in flight, update() is that of
the step before. The clock is read in Python around the three calls, so their binding costs are part of the
figures. Prompts have different lengths, so each step finds some requests in need of a block. The goal is that
of schedule() + update().
"""

from __future__ import annotations

import argparse
import itertools
import platform
import time
from collections import deque

import numpy as np
from quire import _core

VOCAB_SIZE = 32_000
BLOCK_SIZE = 16


def running_core(
    num_requests: int, context: int, num_steps: int, stop: list[str], batches_in_flight: int
) -> _core.EngineCore:
    """A core in which all requests are past their prompts of `context` to 1.5 * `context` tokens, and all but
    one of the batches that may be in flight are."""
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
        max_batches_in_flight=batches_in_flight,
    )
    core = _core.EngineCore(config, table)
    params = _core.SamplingParams(ignore_eos=True, stop=stop)
    for request_id in range(num_requests):
        size = int(rng.integers(context, context * 3 // 2))
        core.add_request(request_id, rng.integers(0, VOCAB_SIZE, size).tolist(), params)
    sizes: deque[int] = deque()  # of the batches in flight
    is_decoding = False
    while not is_decoding or len(sizes) == batches_in_flight:
        if len(sizes) == batches_in_flight:
            core.update(np.zeros(sizes.popleft(), dtype=np.int32))
        else:
            batch = core.schedule()
            is_decoding = batch.num_tokens == batch.num_sampled == num_requests
            sizes.append(batch.num_sampled)
    return core


def time_steps(core: _core.EngineCore, num_requests: int, num_steps: int) -> np.ndarray:
    """Microseconds of schedule(), pack() and update() in each step, [num_steps, 3]."""
    rng = np.random.default_rng(1)
    sampled = [rng.integers(0, VOCAB_SIZE, num_requests).astype(np.int32) for _ in range(64)]
    layout = _core.BatchLayout(core.config)
    buffer = np.zeros(layout.num_bytes, dtype=np.uint8)
    address = buffer.ctypes.data
    times = np.empty((num_steps, 3))
    for step in range(num_steps):
        ids = sampled[step % len(sampled)]
        begin = time.perf_counter_ns()
        batch = core.schedule()
        scheduled = time.perf_counter_ns()
        batch.pack(layout, address, num_requests, num_requests, num_requests)
        packed = time.perf_counter_ns()
        core.update(ids)
        end = time.perf_counter_ns()
        times[step] = scheduled - begin, packed - scheduled, end - packed
    return times / 1e3


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
    print(
        "requests  stop strings  in flight  schedule  pack  update  all: median     p99  without pack  goal"
    )
    for num_requests, stop, batches_in_flight in itertools.product(
        args.requests, ([], ["\n\n", "</answer>"]), (1, 2)
    ):
        runs = []
        for _ in range(args.repeats):
            core = running_core(num_requests, args.context, args.steps, stop, batches_in_flight)
            runs.append(time_steps(core, num_requests, args.steps))
        times = min(runs, key=lambda run: float(np.median(run.sum(axis=1))))
        schedule, pack, update = np.median(times, axis=0)
        total = times.sum(axis=1)
        print(
            f"{num_requests:8}  {len(stop):12}  {batches_in_flight:9}  {schedule:8.1f}  {pack:4.1f}"
            f"  {update:6.1f}"
            f"  {np.median(total):11.1f}  {np.percentile(total, 99):6.1f}"
            f"  {np.median(total - times[:, 1]):12.1f}  {goals.get(num_requests, '-'):>4}"
        )


if __name__ == "__main__":
    main()
