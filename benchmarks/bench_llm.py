"""Host time of quire.LLM's steps without a model: scheduling, texts and the objects that callers get.

    PYTHONPATH=python python benchmarks/bench_llm.py

All requests decode; a runner gives random ids, and random logprobs where they are asked for. On a GPU this
time is hidden by the step of the device as long as it is shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import platform
import time
from collections import deque

import numpy as np
from quire import LLM, SamplingParams, _core
from quire.runner.sampled import Logprobs, Sampled
from quire.sampling_params import MAX_LOGPROBS

NUM_PROMPT_TOKENS = 32


class NoModel:
    """A runner that draws ids, and keeps the time of each call."""

    max_batches_in_flight = 1

    def __init__(self, vocab_size: int) -> None:
        rng = np.random.default_rng(0)
        self.ids = rng.integers(vocab_size // 4, vocab_size // 2, (64, 1024)).astype(np.int32)
        self.logprobs: Logprobs = (
            np.full(1024, -1.5, np.float32),
            np.full(1024, 2, np.int32),
            rng.integers(0, vocab_size, (1024, MAX_LOGPROBS)).astype(np.int32),
            np.sort(-rng.random((1024, MAX_LOGPROBS), np.float32)),
        )
        self.launched: deque[Sampled] = deque()
        self.launched_at: list[int] = []

    def launch(self, batch: _core.Batch) -> None:
        self.launched_at.append(time.perf_counter_ns())
        ids = self.ids[len(self.launched_at) % len(self.ids), : batch.num_sampled]
        self.launched.append(Sampled(ids, self.logprobs if batch.has_logprobs else None))

    def collect(self) -> Sampled:
        return self.launched.popleft()

    def discard(self) -> None:
        self.launched.clear()


def time_steps(num_requests: int, num_logprobs: int | None, num_tokens: int) -> np.ndarray:
    """Microseconds of each step in which all requests decode."""
    max_model_len = NUM_PROMPT_TOKENS + num_tokens
    llm = LLM(
        "quire-8m",
        max_model_len=max_model_len,
        max_num_seqs=num_requests,
        num_gpu_blocks_override=num_requests * (max_model_len // 16 + 2),
        enable_prefix_caching=False,
    )
    runner = NoModel(llm._core.config.vocab_size)
    llm._engine = dataclasses.replace(llm._engine, runner=runner)
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, logprobs=num_logprobs)
    prompts = [[1 + i % 100] * NUM_PROMPT_TOKENS for i in range(num_requests)]
    llm.generate(prompts, params)
    return np.diff(runner.launched_at)[-num_tokens + 1 :] / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--logprobs", type=int, nargs="+", default=[5, 20], help="beside none")
    parser.add_argument("--tokens", type=int, default=256, help="of each request")
    args = parser.parse_args()
    print(f"{platform.machine()}, {args.tokens} tokens for each request; microseconds a step")
    print("requests  logprobs    mean  median      p99  longest")
    for num_requests, num_logprobs in itertools.product(args.requests, [None, *args.logprobs]):
        times = time_steps(num_requests, num_logprobs, args.tokens)
        asked = "none" if num_logprobs is None else num_logprobs
        print(
            f"{num_requests:8}  {asked:>8}  {times.mean():6.0f}  {np.median(times):6.0f}"
            f"  {np.percentile(times, 99):7.0f}  {times.max():7.0f}"
        )


if __name__ == "__main__":
    main()
