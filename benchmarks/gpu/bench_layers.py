"""Time of the CUDA kernels beside attention, and their share of the card's memory bandwidth.

    PYTHONPATH=python:tests/kernels/gpu python benchmarks/gpu/bench_layers.py [--json FILE]

Each figure is the median of CUDA graph replays; a graph holds many calls that rotate over buffers, at most 64
sets of them, of 256 MB together, so that large inputs come from device memory. Bytes are the fewest that must
move: each input read once, each output written once.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from quire import ops

READ_LIMIT = 3.08e12  # bytes/s that one H100 SXM reads at most, measured
ROTATE_BYTES = 256 << 20
DTYPE = torch.bfloat16
SHAPES = {
    "8B": {"hidden": 4096, "inter": 14336, "q_heads": 32, "kv_heads": 8, "head_dim": 128},
    "1B": {"hidden": 2048, "inter": 8192, "q_heads": 32, "kv_heads": 8, "head_dim": 64},
}
VOCAB_SIZE = 128256
TOKENS = (1, 64, 256, 4096)

Call = Callable[[], object]
Case = tuple[str, str, int, int, Callable[[], Call]]  # kernel, shape, rows, bytes, maker of calls


def microseconds(make: Callable[[], Call], num_bytes: int) -> float:
    """Median time of one call inside a graph."""
    copies = max(1, min(64, -(-ROTATE_BYTES // max(num_bytes, 1))))
    calls = [make() for _ in range(copies)]
    per_graph = max(copies, 32)
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(per_graph):
            calls[i % copies]()
    times = []
    for i in range(13):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) * 1000 / per_graph)
    return statistics.median(times)


def layer_cases() -> list[Case]:
    cases: list[Case] = []
    for shape, s in SHAPES.items():
        hidden, inter, head_dim = s["hidden"], s["inter"], s["head_dim"]
        q_heads, kv_heads = s["q_heads"], s["kv_heads"]
        width = (q_heads + 2 * kv_heads) * head_dim
        weight = torch.randn(hidden, device="cuda", dtype=DTYPE)
        table = torch.randn((VOCAB_SIZE, hidden), device="cuda", dtype=DTYPE)
        angles = torch.randn((8192, head_dim // 2), device="cuda")
        for n in TOKENS:

            def normal(*size: int) -> torch.Tensor:
                return torch.randn(size, device="cuda", dtype=DTYPE)

            def norm(n: int = n, hidden: int = hidden, weight: torch.Tensor = weight) -> Call:
                x, residual = normal(n, hidden), normal(n, hidden)
                return lambda: ops.rms_norm(x, weight, 1e-5, residual, x)

            def silu(n: int = n, inter: int = inter) -> Call:
                x, out = normal(n, 2 * inter), normal(n, inter)
                return lambda: ops.act_mul(x, out)

            def embed(n: int = n, hidden: int = hidden, table: torch.Tensor = table) -> Call:
                ids = torch.randint(0, VOCAB_SIZE, (n,), device="cuda", dtype=torch.int32)
                out = normal(n, hidden)
                return lambda: ops.embedding(ids, table, out)

            def rope(
                n: int = n, width: int = width, head_dim: int = head_dim, angles: torch.Tensor = angles
            ) -> Call:
                qkv = normal(n, width)
                positions = torch.randint(0, 8192, (n,), device="cuda", dtype=torch.int32)
                memory = torch.zeros((max(n, 16) // 16 + 1, 2, 16, 8, head_dim), device="cuda", dtype=DTYPE)
                cache, table = ops.KVCache(memory), ops.RopeTable(angles, angles)
                nothing = torch.zeros((2, 1), device="cuda", dtype=torch.int32)
                batch = ops.BatchInfo(
                    positions=positions,
                    slot_mapping=torch.randperm(cache.num_slots, device="cuda")[:n],
                    query_start_loc=nothing[:, 0],
                    seq_lens=nothing[0],
                    block_tables=nothing,
                    block_table_rows=nothing[0],
                )
                return lambda: ops.rope_and_cache(qkv, table, cache, batch)

            kv = 2 * kv_heads * head_dim
            cases += [
                ("rms_norm + residual", shape, n, (4 * n + 1) * hidden * 2, norm),
                ("silu_mul", shape, n, 3 * n * inter * 2, silu),
                ("embedding", shape, n, 2 * n * hidden * 2, embed),
                ("rope_and_cache", shape, n, n * (2 * (q_heads * head_dim + kv) * 2 + head_dim * 4), rope),
            ]
    return cases


SAMPLERS = {
    "greedy": (0.0, 0, 1.0),
    "temperature": (1.0, 0, 1.0),
    "top_k 50": (1.0, 50, 1.0),
    "top_p 0.9": (0.7, 0, 0.9),
    "top_k 50, top_p 0.9": (1.0, 50, 0.9),
    "top_p 0.9, wide": (1.5, 0, 0.9),
    "top_k 5000": (1.0, 5000, 1.0),
}


def sample_cases() -> list[Case]:
    cases: list[Case] = []
    for name, (temperature, top_k, top_p) in SAMPLERS.items():
        for n in (1, 16, 64, 256):

            def make(
                n: int = n, temperature: float = temperature, top_k: int = top_k, top_p: float = top_p
            ) -> Call:
                # A peaked row, as a language model's: a few tokens hold most of the probability.
                logits = torch.randn((n, VOCAB_SIZE), device="cuda") * 2
                logits[:, :64] += torch.linspace(12, 4, 64, device="cuda")
                logits = logits.to(DTYPE)[:, torch.randperm(VOCAB_SIZE, device="cuda")].contiguous()
                args = {
                    "temperature": torch.full((n,), temperature, device="cuda"),
                    "top_k": torch.full((n,), top_k, device="cuda", dtype=torch.int32),
                    "top_p": torch.full((n,), top_p, device="cuda"),
                    "seed": torch.arange(n, device="cuda"),
                    "output_idx": torch.zeros(n, device="cuda", dtype=torch.int32),
                    "out": torch.zeros(n, device="cuda", dtype=torch.int32),
                }
                return lambda: ops.sample(logits, **args)

            cases.append((f"sample: {name}", "128256", n, n * VOCAB_SIZE * 2, make))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {DTYPE}, limit {READ_LIMIT / 1e12} TB/s"
    )
    print(f"{'kernel':28} {'shape':>7} {'rows':>5} {'us':>8} {'TB/s':>6} {'share':>6}")
    rows = []
    for kernel, shape, n, num_bytes, make in layer_cases() + sample_cases():
        us = microseconds(make, num_bytes)
        rate = num_bytes / us * 1e6
        rows.append({"kernel": kernel, "shape": shape, "rows": n, "us": us, "bytes": num_bytes})
        print(
            f"{kernel:28} {shape:>7} {n:5d} {us:8.2f} {rate / 1e12:6.2f} {rate / READ_LIMIT:6.1%}", flush=True
        )
    if args.json:
        args.json.write_text(
            json.dumps({"card": torch.cuda.get_device_name(), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
