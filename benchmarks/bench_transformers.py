"""Tokens per second of the embedded model: this engine beside Hugging Face transformers' `generate`.

    python benchmarks/bench_transformers.py [--model quire-8m] [--tokens 128] [--repeats 5] [--threads N]

Both decode greedily, with the same threads and number format, the same prompts and as many new tokens, at 1
and at 16 requests (transformers: one batch). Each has its own process, and while one works the others sleep;
they take turns, and the table shows medians. transformers runs twice: as it comes, with OpenMP threads that
spin while they wait, and with threads that sleep, which is faster on a busy machine and what our engine
does. The ratio is to the faster of the two.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from rich.console import Console
from rich.table import Table

PROMPT = "def fibonacci(n):\n    "
DTYPES = ("bfloat16", "float32")


def engine_worker(model: str, dtype: str, threads: int, connection: Connection) -> None:
    """Answers (number of requests, tokens) with the seconds it took."""
    from quire import LLM, SamplingParams

    # transformers computes the prompt in each call, so our engine must not find it in its prefix cache.
    llm = LLM(model, dtype=dtype, num_threads=threads, enable_prefix_caching=False)

    def run(num_requests: int, num_tokens: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        outputs = llm.generate([PROMPT] * num_requests, params)
        assert all(len(output.outputs[0].token_ids) == num_tokens for output in outputs)

    answer(connection, run)


def transformers_worker(model: str, dtype: str, threads: int, connection: Connection) -> None:
    """Run a case with transformers."""
    import torch
    from quire.model_path import resolve_model
    from quire.tokenizer import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    folder = resolve_model(model)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0
    prompt = torch.tensor([Tokenizer(folder).encode(PROMPT)])

    def run(num_requests: int, num_tokens: int) -> None:
        ids = prompt.expand(num_requests, -1)
        with torch.inference_mode():
            output = network.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens
            )
        assert output.shape == (num_requests, prompt.shape[1] + num_tokens)

    answer(connection, run)


def answer(connection: Connection, run: Callable[[int, int], None]) -> None:
    run(1, 4)
    connection.send(None)
    while job := connection.recv():
        start = time.perf_counter()
        run(*job)
        connection.send(time.perf_counter() - start)


def measure(options: argparse.Namespace, dtype: str) -> list[tuple[int, list[float]]]:
    """(requests, tokens/s of the engine, of transformers, of transformers with sleeping threads)."""
    context = multiprocessing.get_context("spawn")
    connections = []
    for worker, policy in (
        (engine_worker, None),
        (transformers_worker, None),
        (transformers_worker, "PASSIVE"),
    ):
        ours, theirs = context.Pipe()
        os.environ.pop("OMP_WAIT_POLICY", None)
        if policy:
            os.environ["OMP_WAIT_POLICY"] = policy
        context.Process(
            target=worker, args=(options.model, dtype, options.threads, theirs), daemon=True
        ).start()
        connections.append(ours)
    for connection in connections:
        connection.recv()
    rows = []
    for num_requests in (1, 16):
        seconds: list[list[float]] = [[] for _ in connections]
        for repeat in range(options.repeats + 1):
            for times, connection in zip(seconds, connections, strict=True):
                connection.send((num_requests, options.tokens))
                taken = connection.recv()
                if repeat > 0:  # the first one warms up
                    times.append(taken)
        rows.append((num_requests, [num_requests * options.tokens / statistics.median(t) for t in seconds]))
    for connection in connections:
        connection.send(None)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="quire-8m")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each request")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    table = Table(
        title=f"{options.model}, {options.tokens} new tokens, {options.threads} threads, "
        f"median of {options.repeats}, tokens/s"
    )
    for column in ("dtype", "requests", "quire", "transformers", "sleeping threads", "ratio"):
        table.add_column(column, justify="right")
    for dtype in DTYPES:
        for num_requests, (engine, *others) in measure(options, dtype):
            figures = [f"{rate:.0f}" for rate in (engine, *others)]
            table.add_row(dtype, str(num_requests), *figures, f"{engine / max(others):.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
