"""Speed of the CPU kernels beside what the machine can do.

    python benchmarks/bench_cpu_kernels.py [--threads N] [--isa portable|avx2|avx512]

Attention is shown beside the measured read bandwidth of the memory (decode) and the measured GEMM speed of
torch (prefill); the small ops as microseconds per call for the embedded model's sizes. Each figure is the
best of repeats that fill about a third of a second: on a shared machine the others measure its neighbours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import torch
from quire import ops
from rich.console import Console
from rich.table import Table

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds_per_call(call: Callable[[], object], budget: float = 0.35) -> float:
    call()
    begin = time.perf_counter()
    call()
    once = time.perf_counter() - begin
    inner = max(1, int(budget / 50 / max(once, 1e-7)))
    best = once
    end = time.perf_counter() + budget
    while time.perf_counter() < end:
        begin = time.perf_counter()
        for _ in range(inner):
            call()
        best = min(best, (time.perf_counter() - begin) / inner)
    return best


def make_batch(query_lens: list[int], seq_lens: list[int], block_size: int) -> tuple[ops.BatchInfo, int]:
    """Shuffled blocks; returns the batch and how many blocks it takes."""
    needed = [-(-s // block_size) for s in seq_lens]
    num_blocks = sum(needed)
    ids = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    tables = torch.zeros((len(seq_lens), max(needed)), dtype=torch.int32)
    positions, slots = [], []
    used = 0
    for i, (q, s) in enumerate(zip(query_lens, seq_lens, strict=True)):
        tables[i, : needed[i]] = ids[used : used + needed[i]]
        used += needed[i]
        for p in range(s - q, s):
            positions.append(p)
            slots.append(int(tables[i, p // block_size]) * block_size + p % block_size)
    batch = ops.BatchInfo(
        positions=torch.tensor(positions, dtype=torch.int32),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        query_start_loc=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        block_tables=tables,
        block_table_rows=torch.arange(len(seq_lens), dtype=torch.int32),
    )
    return batch, num_blocks


def make_cache(num_blocks: int, block_size: int, heads: int, dim: int, dtype: torch.dtype) -> ops.KVCache:
    return ops.KVCache(torch.randn(num_blocks, 2, block_size, heads, dim).to(dtype))


def machine_limits() -> tuple[float, float]:
    """Bytes per second that torch reads while summing 512 MiB, operations per second of its float32 GEMM."""
    data = torch.ones(128 << 20)
    read = data.numel() * 4 / seconds_per_call(data.sum)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return read, 2 * 1024**3 / seconds_per_call(lambda: torch.mm(a, b))


def paged_attention(num_q_heads: int, cache: ops.KVCache) -> ops.PagedAttention:
    return ops.PagedAttention(
        num_q_heads=num_q_heads,
        num_kv_heads=cache.num_kv_heads,
        head_dim=cache.head_dim,
        device=torch.device("cpu"),
    )


def attention(console: Console, bandwidth: float, gemm: float) -> None:
    decode = Table(title="attention, decode: 16 requests, 32 query / 8 KV heads, head_dim 128, block 16")
    for column in ("dtype", "context", "ms", "GB/s", "of read bandwidth"):
        decode.add_column(column, justify="right")
    prefill = Table(title="attention, prefill: one prompt, 32 query / 8 KV heads, head_dim 128, block 16")
    for column in ("dtype", "prompt", "ms", "GFLOP/s", "of torch's float32 GEMM", "torch sdpa, ms"):
        prefill.add_column(column, justify="right")
    for name, dtype in DTYPES.items():
        for context in (512, 2048):
            batch, num_blocks = make_batch([1] * 16, [context] * 16, 16)
            cache = make_cache(num_blocks, 16, 8, 128, dtype)
            attend = paged_attention(32, cache)
            query = torch.randn(16, 32 * 128).to(dtype)
            out = torch.empty_like(query)
            s = seconds_per_call(lambda: attend(query, cache, batch, out))  # noqa: B023
            rate = 2 * 16 * context * 8 * 128 * dtype.itemsize / s
            decode.add_row(
                name, str(context), f"{s * 1e3:.2f}", f"{rate / 1e9:.1f}", f"{rate / bandwidth:.0%}"
            )
        for prompt in (128, 1024):
            batch, num_blocks = make_batch([prompt], [prompt], 16)
            cache = make_cache(num_blocks, 16, 8, 128, dtype)
            attend = paged_attention(32, cache)
            query = torch.randn(prompt, 32 * 128).to(dtype)
            out = torch.empty_like(query)
            s = seconds_per_call(lambda: attend(query, cache, batch, out))  # noqa: B023
            rate = 4 * 32 * 128 * prompt * (prompt + 1) / 2 / s
            q = query.view(1, prompt, 32, 128).transpose(1, 2)
            k = torch.randn(1, 32, prompt, 128).to(dtype)
            sdpa = seconds_per_call(
                lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True)  # noqa: B023
            )
            prefill.add_row(
                name,
                str(prompt),
                f"{s * 1e3:.2f}",
                f"{rate / 1e9:.0f}",
                f"{rate / gemm:.0%}",
                f"{sdpa * 1e3:.2f}",
            )
    console.print(decode)
    console.print(prefill)


def embedded_model(console: Console) -> None:
    """hidden 256, 4 query / 2 KV heads, head_dim 64, intermediate 768, vocab 4096, context 256."""
    table = Table(title="embedded model, µs per call (256 hidden, 4/2 heads of 64, 768 inner, context 256)")
    table.add_column("op")
    cases = [(name, batch_size) for name in DTYPES for batch_size in (1, 16)]
    for name, batch_size in cases:
        table.add_column(f"{name} batch {batch_size}", justify="right")
    rows: dict[str, list[str]] = {}
    for name, batch_size in cases:
        dtype = DTYPES[name]
        batch, num_blocks = make_batch([1] * batch_size, [256] * batch_size, 16)
        cache = make_cache(num_blocks, 16, 2, 64, dtype)
        attend = paged_attention(4, cache)
        hidden, residual = torch.randn(batch_size, 256).to(dtype), torch.randn(batch_size, 256).to(dtype)
        qkv, gate_up = torch.randn(batch_size, 8 * 64).to(dtype), torch.randn(batch_size, 1536).to(dtype)
        weight, out, inner = (
            torch.ones(256, dtype=dtype),
            torch.empty_like(hidden),
            torch.empty(batch_size, 768).to(dtype),
        )
        angles = torch.randn(1024, 32)
        rope = ops.RopeTable(angles.cos(), angles.sin())
        embeddings, ids = torch.randn(4096, 256).to(dtype), torch.arange(batch_size, dtype=torch.int32)
        logits = torch.randn(batch_size, 4096).to(dtype) * 4
        query = qkv[:, :256]
        sampling = {
            "seed": torch.arange(batch_size),
            "output_idx": torch.zeros(batch_size, dtype=torch.int32),
            "out": torch.empty(batch_size, dtype=torch.int32),
        }

        def settings(
            temperature: float, top_k: int, top_p: float, n: int = batch_size
        ) -> dict[str, torch.Tensor]:
            return {
                "temperature": torch.full((n,), float(temperature)),
                "top_k": torch.full((n,), top_k, dtype=torch.int32),
                "top_p": torch.full((n,), float(top_p)),
            }

        greedy, plain, nucleus = settings(0, 0, 1), settings(1, 0, 1), settings(0.8, 50, 0.95)
        calls: dict[str, Callable[[], object]] = {
            "paged_attention": lambda: attend(query, cache, batch, out),  # noqa: B023
            "rope_and_cache": lambda: ops.rope_and_cache(qkv, rope, cache, batch),  # noqa: B023
            "rms_norm": lambda: ops.rms_norm(hidden, weight, 1e-5, residual, out),  # noqa: B023
            "silu_mul": lambda: ops.act_mul(gate_up, inner),  # noqa: B023
            "embedding": lambda: ops.embedding(ids, embeddings, out),  # noqa: B023
            "sample, greedy": lambda: ops.sample(logits, **greedy, **sampling),  # noqa: B023
            "sample, temperature 1": lambda: ops.sample(logits, **plain, **sampling),  # noqa: B023
            "sample, 0.8, top_k 50, top_p 0.95": lambda: ops.sample(logits, **nucleus, **sampling),  # noqa: B023
        }
        total = 0.0
        for op, call in calls.items():
            s = seconds_per_call(call, 0.15)
            per_step = {
                "paged_attention": 8,
                "rope_and_cache": 8,
                "rms_norm": 17,
                "silu_mul": 8,
                "embedding": 1,
            }
            total += s * per_step.get(op, 1 if op == "sample, greedy" else 0)
            rows.setdefault(op, []).append(f"{s * 1e6:.1f}")
        rows.setdefault("all of a greedy step of 8 layers", []).append(f"{total * 1e6:.0f}")
    for op, values in rows.items():
        table.add_row(op, *values)
    console.print(table)


def large_vocabulary(console: Console) -> None:
    table = Table(title="sample, µs per row: 4 rows, vocabulary 128,256, float32")
    table.add_column("setting")
    columns = {"peaked (σ = 4)": 4.0, "flat (σ = 0.1)": 0.1}
    for column in columns:
        table.add_column(column, justify="right")
    kinds = {
        "greedy": (0, 0, 1),
        "temperature 1": (1, 0, 1),
        "top_k 50": (1, 50, 1),
        "top_p 0.9": (1, 0, 0.9),
    }
    kinds["top_k 1000, top_p 0.9"] = (1, 1000, 0.9)
    for kind, (temperature, top_k, top_p) in kinds.items():
        cells = []
        for scale in columns.values():
            logits = torch.randn(4, 128256, generator=torch.Generator().manual_seed(0)) * scale
            arguments = {
                "temperature": torch.full((4,), float(temperature)),
                "top_k": torch.full((4,), top_k, dtype=torch.int32),
                "top_p": torch.full((4,), float(top_p)),
                "seed": torch.arange(4),
                "output_idx": torch.zeros(4, dtype=torch.int32),
            }
            s = seconds_per_call(lambda: ops.sample(logits, **arguments), 0.2)  # noqa: B023
            cells.append(f"{s / 4 * 1e6:.0f}")
        table.add_row(kind, *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--isa", choices=ops.supported_cpu_isas(), default=ops.cpu_isa())
    options = parser.parse_args()
    ops.set_cpu_isa(options.isa)
    ops.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    console = Console()
    bandwidth, gemm = machine_limits()
    console.print(
        f"{options.threads} threads, {options.isa}; memory read {bandwidth / 1e9:.1f} GB/s, "
        f"torch float32 GEMM {gemm / 1e9:.0f} GFLOP/s"
    )
    attention(console, bandwidth, gemm)
    embedded_model(console)
    large_vocabulary(console)


if __name__ == "__main__":
    main()
